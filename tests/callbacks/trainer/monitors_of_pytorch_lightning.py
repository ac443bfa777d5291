"""Run by ``test_monitors``: the monitors of ``pytorch_lightning`` wait and forget as those of ``lightning.pytorch`` do.

Its classes do not know those of the other package; a process of its own keeps them out of the tests' one.
"""

import sys
import warnings
from pathlib import Path

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.schedule import Constant

LOSSES = [0.5, 0.1, 0.2, 0.9, 0.7, 0.8, 0.6]


class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4))

    def training_step(self, batch, batch_idx):
        return self.net(torch.ones(1, 4)).square().sum()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", LOSSES[self.current_epoch])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer, patience=1), "monitor": "val_loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    saver = ModelCheckpoint(sys.argv[1], "{epoch}", monitor="val_loss", save_last="link")
    stopper = EarlyStopping("val_loss", patience=2)
    pruning = PruningScheduler(schedule=Constant(value=0.5), window=Window(begin=3, end=4, unit="epoch"))
    trainer = pytorch_lightning.Trainer(
        callbacks=[stopper, pruning, saver],
        max_epochs=len(LOSSES),
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(torch.zeros(4, 1))
    trainer.fit(Module(), loader, loader)
    assert Path(saver.best_model_path).name == "epoch=6.ckpt"
    assert {path.name for path in Path(sys.argv[1]).iterdir()} == {"epoch=6.ckpt", "last.ckpt"}
    assert round(float(stopper.best_score), 6) == 0.6
    (config,) = trainer.lr_scheduler_configs
    assert round(config.scheduler.best, 6) == 0.6


if __name__ == "__main__":
    main()
