"""Run by ``test_pruning_evidence``, twice at once: a fit that is resumed between two pruning steps ends as a whole one.

Usage: ``python two_ranks_resume.py FOLDER``; prints ``resumed equal`` on each rank.
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.pruning import Combined, MeanActivation, Taylor, Wanda
from lightning_optim.schedule import Steps


class Net(LightningModule):
    """Its data are a function of rank, epoch and batch, of another scale on each rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(100 * self.global_rank + batch_idx)
        x = torch.randn(5, 6, generator=generator)
        if self.global_rank == 1 and batch_idx in (0, 5):  # before each checkpoint: what only this rank sees decides
            x *= torch.tensor([100.0, 0.0, 100.0, 0.0, 0.0, 0.0])
        return F.cross_entropy(self.net(x), x[:, :3].argmax(1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.02)


def fit(folder, ckpt_path=None):
    criteria = {"active": MeanActivation(), "read": Wanda(within="layer"), "slope": Taylor()}
    pruning = PruningScheduler(
        schedule=Steps(values=[0.3, 0.6]),
        criterion=Combined(criteria=criteria, normalise="mean"),
        window=Window(begin=4, end=9, every=5, unit="step"),
    )
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    module = Net()
    trainer = Trainer(
        max_epochs=1,
        callbacks=[pruning, saver],
        strategy="ddp",
        devices=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.arange(24), 1), ckpt_path=ckpt_path, weights_only=bool(ckpt_path) or None)
    assert pruning.target_sparsity == 0.6
    return module


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    whole = fit(folder / "whole")
    for step in (2, 6):
        resumed = fit(folder / "resumed", folder / "whole" / f"step={step}.ckpt")
        for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(value, other), f"{name} differs when resumed at step {step}"
    sys.stdout.write("resumed equal\n")
    sys.stdout.flush()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
