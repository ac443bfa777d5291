"""Objective of distillation: the student's own loss and the transfer losses, weighted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from lightning_optim.distillation.loss.base import Context, Loss
from lightning_optim.distillation.loss.soft_target import SoftTarget
from lightning_optim.schedule.base import Schedule
from lightning_optim.surgery.tap import ModuleCall

LossWeight = float | Schedule


@final
class DistillationObjective:
    """Objective of distillation: ``hard_weight * own loss + sum of weight * transfer loss``.

    Args:
        losses: Transfer losses by key, or one, whose key is its class name in snake case; ``None``: soft targets.
        weight: Factor of every transfer loss, or of each by key; numbers of at least 0, or schedules.
        hard_weight: Factor of the student's own loss; a number of at least 0, or a schedule.

    Raises:
        TypeError: If a loss or weight is of another kind.
        ValueError: If a weight is out of range, loss and weight keys differ, or all transfer losses have weight 0.

    Example:
        >>> import torch
        >>> objective = DistillationObjective(SoftTarget(), weight=0.5, hard_weight=0.25)
        >>> objective.total(torch.tensor(4.0), {"soft_target": torch.tensor(2.0)}, progress=0.0)
        tensor(2.)
    """

    def __init__(
        self,
        losses: Loss | Mapping[str, Loss] | None,
        weight: LossWeight | Mapping[str, LossWeight],
        hard_weight: LossWeight,
    ) -> None:
        self.losses = _as_losses(losses)
        self.weights = _as_weights(weight, list(self.losses))
        self.hard_weight = _as_weight(hard_weight, "hard_weight")

    def __repr__(self) -> str:
        return f"DistillationObjective(losses={self.losses}, weight={self.weights}, hard_weight={self.hard_weight})"

    @property
    def has_schedule(self) -> bool:
        """Whether any weight changes while training goes on."""
        return any(isinstance(weight, Schedule) for weight in (*self.weights.values(), self.hard_weight))

    def compare(self, pairs: Sequence[tuple[ModuleCall, ModuleCall]], context: Context) -> dict[str, Tensor]:
        """Return each transfer loss by key, unweighted, in the mean over pairs.

        Args:
            pairs: The student's calls, each with the teacher's answer; at least one.
            context: Where training stands, and the batch.
        """
        values: dict[str, Tensor] = {}
        for key, loss in self.losses.items():
            for student, teacher in pairs:
                value = loss(student, teacher, context)
                values[key] = values[key] + value if key in values else value
        return values if len(pairs) == 1 else {key: value / len(pairs) for key, value in values.items()}

    def total(self, own: Tensor, values: Mapping[str, Tensor], progress: float) -> Tensor:
        """Return the loss to train with.

        Args:
            own: The student's own loss, a scalar.
            values: Transfer losses by key, from ``compare``.
            progress: How far through its window distillation is, in ``[0, 1]``.
        """
        total = own * _value(self.hard_weight, progress)
        for key, value in values.items():
            total = total + _value(self.weights[key], progress) * value
        return total


def _as_losses(losses: Any) -> dict[str, Loss]:
    if losses is None:
        losses = SoftTarget()
    if isinstance(losses, Loss):
        return {re.sub(r"(?<!^)(?=[A-Z])", "_", type(losses).__name__).lower(): losses}
    if not isinstance(losses, Mapping):
        raise TypeError(f"losses must be a loss or losses by key, got {type(losses).__name__}")
    if not losses:
        raise ValueError("losses must hold at least one loss, got none")
    for key, loss in losses.items():
        if not isinstance(loss, Loss):
            raise TypeError(
                f"losses[{key!r}] must be a distillation loss, got {type(loss).__name__}: "
                "a Hydra node needs its _target_, and _convert_: all on the callback"
            )
    return {str(key): loss for key, loss in losses.items()}


def _as_weights(weight: Any, keys: list[str]) -> dict[str, LossWeight]:
    if not isinstance(weight, Mapping):
        weight = dict.fromkeys(keys, weight)
    if set(weight) != set(keys):
        raise ValueError(f"weight names {sorted(weight)}, but the losses are {sorted(keys)}: give each loss its weight")
    weights = {key: _as_weight(weight[key], f"weight of {key!r}") for key in keys}
    if all(value == 0.0 for value in weights.values()):
        raise ValueError("every transfer loss has weight 0, so the teacher would do nothing: raise one of the weights")
    return weights


def _as_weight(value: Any, what: str) -> LossWeight:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number or a schedule, got {type(value).__name__}")
    if not (value >= 0.0 and math.isfinite(value)):
        raise ValueError(f"{what} must be a number of at least 0, got {value}")
    return float(value)


def _value(weight: LossWeight, progress: float) -> float:
    return weight(progress) if isinstance(weight, Schedule) else weight
