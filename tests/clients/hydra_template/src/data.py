"""Data of the application: four clouds of points."""

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class BlobsDataModule(LightningDataModule):
    def __init__(self, batch_size: int = 50, shape: tuple[int, ...] = (16,)):
        super().__init__()
        self.save_hyperparameters(logger=False)

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(0, 4, (256,), generator=generator)
        x = torch.randn(4, 16, generator=generator)[label] + 2.0 * torch.randn(256, 16, generator=generator)
        self.points = TensorDataset(x.view(-1, *self.hparams.shape), label)

    def train_dataloader(self):
        return DataLoader(self.points, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.points, batch_size=self.hparams.batch_size)

    test_dataloader = val_dataloader
