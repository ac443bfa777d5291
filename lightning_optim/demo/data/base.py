"""Image data of the demo: three splits in memory, and loaders that give equal batches again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import LightningDataModule
from typing_extensions import override

from lightning_optim.demo.data.tensors import Augmentation, Split, TensorLoader


class ImageData(LightningDataModule, ABC):
    """Image data in memory: train, validation and test images.

    Args:
        batch_size: Samples of a training batch, per rank.
        seed: Order and augmentation of the training batches.
        augmentation: What to do with training images.
    """

    num_classes: int = 10

    def __init__(self, *, batch_size: int, seed: int, augmentation: Augmentation) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self._splits: tuple[Split, Split, Split] | None = None
        self._place: dict[str, int] | None = None

    @abstractmethod
    def read(self) -> tuple[Split, Split, Split]:
        """Return the train, validation and test samples.

        Raises:
            ArtefactError: If the data is missing or corrupt.
        """

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """The train, validation and test samples, read once."""
        if self._splits is None:
            self._splits = self.read()
        return self._splits

    @override
    def setup(self, stage: str) -> None:
        _ = self.splits

    @override
    def train_dataloader(self) -> TensorLoader:
        loader = self._loader(self.splits[0], self.batch_size, self.seed)
        if self._place is not None:
            loader.load_state_dict(self._place)
        return loader

    @override
    def val_dataloader(self) -> TensorLoader:
        return self._loader(self.splits[1], 4 * self.batch_size, None)

    @override
    def test_dataloader(self) -> TensorLoader:
        return self._loader(self.splits[2], 4 * self.batch_size, None)

    # The trainer restores a loader's own state too late where an optimizer asks for the number of steps, so the place
    # within the epoch travels here as well.
    @override
    def state_dict(self) -> dict[str, Any]:
        loader = self.trainer.train_dataloader if self.trainer is not None else None
        return loader.state_dict() if isinstance(loader, TensorLoader) else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        self._place = dict(state_dict) if is_fit and state_dict else None

    @override
    def teardown(self, stage: str) -> None:
        self._place = None

    def _loader(self, split: Split, batch_size: int, seed: int | None) -> TensorLoader:
        shares: dict[str, Any] = {}
        if self.trainer is not None and self.trainer.distributed_sampler_kwargs is not None:
            shares = self.trainer.distributed_sampler_kwargs
        return TensorLoader(
            split,
            batch_size,
            seed=seed,
            augmentation=self.augmentation,
            rank=shares.get("rank", 0),
            world_size=shares.get("num_replicas", 1),
        )
