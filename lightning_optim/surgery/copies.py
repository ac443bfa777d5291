"""Copies of a model in evaluation mode, with parameters of their own or with the model's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def eval_copy(model: nn.Module, stand_ins: Mapping[Tensor, Tensor] | None = None) -> nn.Module:
    """Return a deep copy in evaluation mode, without the trainer that a LightningModule holds on to.

    Args:
        model: The model; left untouched.
        stand_ins: Tensors of the model, and what takes their place in the copy.

    Example:
        >>> layer = nn.Dropout()
        >>> eval_copy(layer).training, layer.training
        (False, True)
    """
    memo: dict[int, Any] = {id(tensor): stand_in for tensor, stand_in in (stand_ins or {}).items()}
    memo |= {id(held): None for module in model.modules() for held in vars(module).values() if _is_trainer(held)}
    return copy.deepcopy(model, memo).eval()


def _is_trainer(held: object) -> bool:
    """Whether it is a trainer of Lightning, which holds the model in turn; perhaps by a weak reference."""
    return any(base.__name__ in ("Trainer", "Fabric") for base in held.__class__.__mro__)


def eval_view(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose parameters are those of the model: for reading, at no cost in memory.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> view = eval_view(layer)
        >>> view.weight is layer.weight, view.running_mean is layer.running_mean
        (True, False)
    """
    return eval_copy(model, {parameter: parameter for parameter in model.parameters()})
