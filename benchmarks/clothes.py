"""The first images of Fashion-MNIST, and fits on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import quiet_trainer
from lightning_optim.demo import Classifier, FashionMNIST, ResidualNet, Split

EVALUATION_BATCH = 500


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a net is trained.

    Args:
        epochs: Epochs.
        lr: Peak learning rate.
        batch_size: Images of a step.
        weight_decay: Of AdamW.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    weight_decay: float = 5e-4


@final
class Clothes:
    """The first images of those to train on, as they are; 5,000 to choose settings by, and the 10,000 to test on.

    Args:
        images: Number of images to train on.
    """

    def __init__(self, images: int) -> None:
        train, validation, test = FashionMNIST(num_validation=5000).read()
        self.train, self.validation, self.test = map(_as_dataset, (train.take(torch.arange(images)), validation, test))

    def fit(
        self, net: Callable[[], nn.Module], callbacks: Sequence[Callback], training: Training, seed: int
    ) -> Classifier:
        """Train a fresh net; ``seed`` gives its weights, the order of images, and what else is drawn."""
        torch.manual_seed(seed)
        module = Classifier(net(), lr=training.lr, weight_decay=training.weight_decay)
        order = torch.Generator().manual_seed(seed)
        batches = DataLoader(self.train, training.batch_size, shuffle=True, generator=order)
        module.example_input_array = self.train[:1][0]
        quiet_trainer(callbacks, max_epochs=training.epochs).fit(module, batches)
        return module


def _as_dataset(split: Split) -> TensorDataset:
    return TensorDataset(split.images.float() / 255.0, split.labels)


def accuracy(forward: Callable[[Tensor], Tensor], images: TensorDataset) -> float:
    """Right answers in percent; a module is judged in evaluation mode."""
    if isinstance(forward, nn.Module):
        forward.eval()
    with torch.inference_mode():
        right = sum(int((forward(x).argmax(1) == y).sum()) for x, y in DataLoader(images, EVALUATION_BATCH))
    return 100.0 * right / len(images)


def judged(net: nn.Module, data: Clothes, **further: Any) -> dict[str, Any]:
    """Accuracy on the images to choose by, and on those to test on."""
    return {"validation": accuracy(net, data.validation), "test": accuracy(net, data.test), **further}


def small_residual_net(*widths: int) -> nn.Module:
    """Residual net whose first convolution halves the image."""
    return ResidualNet(widths=widths, stem_stride=2)
