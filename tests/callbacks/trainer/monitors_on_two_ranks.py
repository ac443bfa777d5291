"""Run by ``test_monitors``: two ranks forget the same files, and the first one removes them."""

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import distributed

from written_losses import WrittenLosses, plateau, pruning, save


class Module(WrittenLosses):
    scheduler = plateau(monitor="val_loss")


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    savers = [
        ModelCheckpoint(sys.argv[1], "low", monitor="val_loss", save_top_k=2),
        ModelCheckpoint(sys.argv[1], "{epoch}", monitor="val_loss", mode="max", save_last="link"),
    ]
    stopper = EarlyStopping("val_loss", patience=2)
    trainer = save(stopper, pruning(), *savers, module=Module(), strategy="ddp", devices=2)
    names = {path.name for path in Path(sys.argv[1]).iterdir()}
    assert names == {"low.ckpt", "low-v1.ckpt", "epoch=3.ckpt", "last.ckpt"}, names
    (config,) = trainer.lr_scheduler_configs
    found = [saver.state_dict() for saver in savers], stopper.state_dict(), config.scheduler.best
    everyone = [None, None]
    distributed.all_gather_object(everyone, repr(found))
    assert everyone[0] == everyone[1], everyone
    assert round(config.scheduler.best, 6) == round(float(stopper.best_score), 6) == 0.6
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
