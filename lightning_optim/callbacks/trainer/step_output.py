"""Loss in what a training step returns: alone, or at ``"loss"`` of a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def loss_of(output: Any) -> Tensor | None:
    """Return the loss; ``None`` where a step returns none, or what is for Lightning to refuse.

    Example:
        >>> import torch
        >>> loss_of({"loss": torch.tensor(2.0)}), loss_of(None)
        (tensor(2.), None)
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None


def with_loss(output: Any, loss: Tensor) -> Any:
    """Return the output of a step that has a loss, with another one in its place."""
    return {**output, "loss": loss} if isinstance(output, Mapping) else loss
