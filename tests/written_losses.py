"""A model whose losses are written down, so that a test knows which epoch is the best, and a pruner for it."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.schedule import Constant
from support import quiet

BATCHES = 4
TARGET = 3  # the epoch in whose first batch the sparsity is reached
LOSSES = (0.5, 0.1, 0.2, 0.9, 0.7, 0.8, 0.6)  # epoch 1 is the best, epoch 6 the best of the pruned model


class WrittenLosses(LightningModule):
    """A layer whose loss of validation is written down, by epoch."""

    losses = LOSSES
    scheduler = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 4))

    def training_step(self, batch, batch_idx):
        return self.net(torch.ones(1, 4)).square().sum()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.losses[self.current_epoch], sync_dist=True)
        self.log("count", torch.tensor(int(100 * self.losses[self.current_epoch])), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)} if self.scheduler else optimizer


def plateau(patience=1, **settings):
    """What makes a plateau scheduler, for ``WrittenLosses.scheduler``."""
    return staticmethod(lambda optimizer: {"scheduler": ReduceLROnPlateau(optimizer, patience=patience)} | settings)


def pruning(**settings):
    """A PruningScheduler that reaches its target at the first batch of epoch ``TARGET``."""
    plain = {"schedule": Constant(value=0.5), "window": Window(begin=TARGET, end=TARGET + 1, unit="epoch")}
    return PruningScheduler(**plain | settings)


def fit(*callbacks, module=None, ckpt_path=None, **settings):
    """Train for as many epochs as losses are written down."""
    trainer = quiet(*callbacks, **{"max_epochs": len(LOSSES), "num_sanity_val_steps": 0} | settings)
    loader = DataLoader(torch.zeros(BATCHES * trainer.world_size, 1))
    trainer.fit(module or WrittenLosses(), loader, loader, ckpt_path=ckpt_path)
    return trainer


def save(*callbacks, **settings):
    """Train, and write checkpoints."""
    return fit(*callbacks, enable_checkpointing=True, **settings)
