"""Data set in memory, batched by indexing: no worker processes, and every batch a function of its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_optim.demo.data.functional import mirror_images, seed_of, shift_images, turn_images


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Split of a data set: images and their classes.

    Args:
        images: ``[N, C, H, W]``; floats in ``[0, 1]``, or ``uint8``, which batches divide by 255.
        labels: ``[N]``, ``int64``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """Return the samples at ``indices``."""
        return Split(images=self.images[indices], labels=self.labels[indices])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Augmentation by random turns, shifts and mirrors.

    Args:
        max_angle: Largest turn to either side in degrees, in ``[0, 180]``.
        max_scale: Largest change of size, as a fraction in ``[0, 1)``.
        max_shear: Largest slant to either side, in pixels per pixel, at least 0.
        max_shift: Largest shift in pixels along each side, at least 0.
        mirror: Probability of swapping left and right, in ``[0, 1]``.
    """

    max_angle: float = 0.0
    max_scale: float = 0.0
    max_shear: float = 0.0
    max_shift: int = 0
    mirror: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.max_angle <= 180.0 and 0.0 <= self.max_scale < 1.0 and self.max_shear >= 0.0):
            raise ValueError(
                "max_angle must be in [0, 180], max_scale in [0, 1) and max_shear at least 0, "
                f"got {self.max_angle}, {self.max_scale} and {self.max_shear}"
            )
        if self.max_shift < 0:
            raise ValueError(f"max_shift must be at least 0 pixels, got {self.max_shift}")
        if not 0.0 <= self.mirror <= 1.0:
            raise ValueError(f"mirror is a probability in [0, 1], got {self.mirror}")

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment ``[B, C, H, W]``; equal seeds give equal images."""
        generator = torch.Generator().manual_seed(seed)
        if self.max_angle or self.max_scale or self.max_shear:
            angle, scale, shear = 2.0 * torch.rand(3, len(images), generator=generator) - 1.0
            images = turn_images(images, angle * self.max_angle, 1.0 + scale * self.max_scale, shear * self.max_shear)
        if self.max_shift:
            span = 2 * self.max_shift + 1
            images = shift_images(images, torch.randint(span, (len(images), 2), generator=generator) - self.max_shift)
        if self.mirror:
            images = mirror_images(images, torch.rand(len(images), generator=generator) < self.mirror)
        return images


@final
class EpochOrder:
    """Order of one epoch's samples, a function of the seed and the epoch.

    Trainers find it as a loader's ``sampler`` and tell it the epoch.

    Args:
        size: Samples in the data set.
        seed: Which sequence of orders; ``None`` keeps the samples as they lie.

    Example:
        >>> order = EpochOrder(4, seed=0)
        >>> first = list(order)
        >>> order.set_epoch(1)
        >>> sorted(order) == sorted(first), list(order) == first
        (True, False)
    """

    def __init__(self, size: int, seed: int | None) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def indices(self) -> Tensor:
        """Return the epoch's order, ``[N]``."""
        if self.seed is None:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        return torch.randperm(self.size, generator=generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return self.size


@final
class TensorLoader:
    """Loader of batches ``(images, labels)``, each a function of the seed, the epoch and the batch's index alone.

    It saves its place: a run resumed within an epoch goes on with the next batch.

    Args:
        split: The data.
        batch_size: Samples of a batch, per rank.
        seed: Order and augmentation; ``None`` keeps the order, augments nothing and drops no sample. With a
            seed, the last, smaller batch is dropped: all ranks take equally many steps.
        augmentation: What to do with the images of a seeded loader.
        rank: This process's share of the samples.
        world_size: Number of shares.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed is not None and batch_size * world_size > len(split):
            raise ValueError(
                f"{len(split)} samples do not fill one batch of {batch_size} on each of {world_size} ranks: "
                "lower batch_size"
            )
        self.split, self.batch_size = split, batch_size
        self.sampler = EpochOrder(len(split), seed)
        self.batch_sampler = None  # trainers ask for it wherever they find a sampler
        self._augmentation = augmentation or Augmentation()
        self._rank, self._world_size = rank, world_size
        self._position = self._start = 0
        self._position_epoch = -1

    def __len__(self) -> int:
        if self.sampler.seed is not None:
            return len(self.split) // (self.batch_size * self._world_size)
        share = len(range(self._rank, len(self.split), self._world_size))
        return (share + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator starts at its first batch: trainers build the iterator before they set the epoch.
        epoch = self.sampler.epoch
        first = self._start if epoch == self._position_epoch and self._start < len(self) else 0
        self._start, self._position_epoch = 0, epoch
        mine = self.sampler.indices()[self._rank :: self._world_size]
        for index in range(first, len(self)):
            self._position = index + 1
            yield self._batch(mine[index * self.batch_size : (index + 1) * self.batch_size], epoch, index)

    def state_dict(self) -> dict[str, int]:
        """Return where in which epoch the loader stands."""
        return {"epoch": self._position_epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batch that was given out last, if that epoch is not over."""
        self._position_epoch, self._start = state["epoch"], state["position"]

    @property
    def num_samples(self) -> int:
        """Number of samples, of all ranks."""
        return len(self.split)

    def hold_out(self, share: float, seed: int) -> tuple[TensorLoader, TensorLoader]:
        """Split it at random in two loaders without a common sample: of what is kept, and of the share held out."""
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed_of(seed)))
        num_held = round(share * len(order))
        return self._of(order[num_held:]), self._of(order[:num_held])

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a number, from 0 on over all epochs."""
        epoch, index = divmod(number, len(self))
        order = EpochOrder(len(self.split), self.sampler.seed)
        order.set_epoch(epoch)
        mine = order.indices()[self._rank :: self._world_size]
        return self._batch(mine[index * self.batch_size : (index + 1) * self.batch_size], epoch, index)

    def _of(self, samples: Tensor) -> TensorLoader:
        return TensorLoader(
            self.split.take(samples.sort().values),
            self.batch_size,
            seed=self.sampler.seed,
            augmentation=self._augmentation,
            rank=self._rank,
            world_size=self._world_size,
        )

    def _batch(self, indices: Tensor, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        images = self.split.images[indices]
        if images.dtype == torch.uint8:
            images = images.float() / 255.0
        if self.sampler.seed is not None:
            images = self._augmentation(images, seed_of(self.sampler.seed, epoch, index, self._rank))
        return images, self.split.labels[indices]
