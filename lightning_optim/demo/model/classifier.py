"""Classifier, an ordinary LightningModule: it knows nothing of compression."""

from __future__ import annotations

import math
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

Batch = tuple[Tensor, Tensor]


@final
class Classifier(LightningModule):
    """Classifier of images, trained by AdamW under a one-cycle schedule (Smith, 2018; arXiv:1803.09820).

    Logs ``train/loss``, ``val/loss``, ``val/accuracy`` and ``test/accuracy``.

    Args:
        network: Images -> logits ``[B, num_classes]``.
        num_classes: Classes to tell apart.
        lr: Peak learning rate.
        weight_decay: Of AdamW, on every parameter.
        warmup: Share of the fit before the peak, in ``(0, 1)``.
        memory_format: ``"channels_last"`` is the faster layout for convolutions on a CPU. Without AVX-512,
            torch 2.13's backward pass of a strided 1 x 1 convolution that reads fewer than 8 channels writes out of
            bounds in it: such narrow nets need ``"contiguous"``.

    Example:
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), num_classes=3)
        >>> model(torch.zeros(2, 1, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int = 10,
        lr: float = 4e-3,
        weight_decay: float = 5e-4,
        warmup: float = 0.2,
        memory_format: Literal["contiguous", "channels_last"] = "channels_last",
    ) -> None:
        super().__init__()
        if not lr > 0.0 or not 0.0 < warmup < 1.0:
            raise ValueError(f"lr must be above 0 and warmup in (0, 1), got {lr} and {warmup}")
        if memory_format not in ("contiguous", "channels_last"):
            raise ValueError(f"memory_format must be 'contiguous' or 'channels_last', got {memory_format!r}")
        self.save_hyperparameters(ignore=["network"])
        layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
        self.net = network.to(memory_format=layout)  # type: ignore[call-overload]  # the stub lacks this overload
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits ``[B, num_classes]``."""
        logits: Tensor = self.net(images)
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train/loss", loss, batch_size=len(labels))
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        loss = F.cross_entropy(logits, labels)
        self.log("val/loss", loss, batch_size=len(labels), sync_dist=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(labels))

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test/accuracy", self.test_accuracy, batch_size=len(labels))

    @override
    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:  # below 0 for data without a length
            raise ValueError(
                "a one-cycle schedule needs a fit with an end: set max_steps, or max_epochs and data with a length"
            )
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        total = max(int(steps) + 1, 8)  # in a shorter fit, the schedule's phases would have no length
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=total, pct_start=max(self.warmup, 2 / total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
