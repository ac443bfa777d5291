"""Digits, handwritten, which come inside scikit-learn: real data without a download."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from typing_extensions import override

from lightning_optim.demo.data.base import ImageData
from lightning_optim.demo.data.functional import stratified_indices
from lightning_optim.demo.data.tensors import Augmentation, Split
from lightning_optim.errors import ArtefactError

_NUM_TEST = 450  # rows come in the order of their writers: these are by writers that training never saw


@final
class Digits(ImageData):
    """Digits of scikit-learn: 1797 images of 8 x 8 pixels, upscaled; the last 450 are the test set.

    Args:
        batch_size: Samples of a training batch, per rank.
        seed: Order and augmentation of the training batches.
        resolution: Side of the images in pixels, at least 8.
        num_validation: Samples held out of the first 1347 for validation, every class in proportion.
        split_seed: Which samples those are.
        augmentation: What happens to training images; small turns, slants and shifts by default: hands differ.

    Example:
        >>> images, labels = next(iter(Digits().train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 16, 16]), torch.Size([64]))
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        seed: int = 0,
        resolution: int = 16,
        num_validation: int = 147,
        split_seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        hands = Augmentation(max_angle=10.0, max_scale=0.1, max_shear=0.1, max_shift=1)
        super().__init__(batch_size=batch_size, seed=seed, augmentation=augmentation or hands)
        if resolution < 8:
            raise ValueError(f"resolution must be at least 8 pixels, got {resolution}")
        self.resolution, self.num_validation, self.split_seed = resolution, num_validation, split_seed

    @override
    def read(self) -> tuple[Split, Split, Split]:
        everything = self._everything()
        rest = torch.arange(len(everything) - _NUM_TEST)
        train, validation = stratified_indices(everything.labels[rest], self.num_validation, self.split_seed)
        test = torch.arange(len(rest), len(everything))
        return everything.take(train), everything.take(validation), everything.take(test)

    def _everything(self) -> Split:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ArtefactError("digits come in scikit-learn: pip install 'lightning-optim[demo]'") from error
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16.0
        if self.resolution != 8:
            images = F.interpolate(images, size=self.resolution, mode="bilinear", align_corners=False)
        return Split(images=images, labels=torch.tensor(labels, dtype=torch.int64))
