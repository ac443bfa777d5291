"""Objective of distillation: the student's own loss and the transfer losses, weighted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.checked import by_key
from lightning_optim.distillation.loss.base import Context, Loss
from lightning_optim.distillation.loss.soft_target import SoftTarget
from lightning_optim.distillation.observation import Observation, Recording
from lightning_optim.distillation.place import Place, PlacePair, Side
from lightning_optim.errors import TapError, TargetError
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.factor import Factor, as_factor, as_factors, factor_at
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.precision import computing_dtype, default_float32

LossWeight = Factor


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
        given = SoftTarget() if losses is None else losses
        self.losses: dict[str, Loss] = by_key("losses", given, Loss, "loss of distillation")  # type: ignore[type-abstract]
        self.weights = _as_weights(weight, list(self.losses))
        self.hard_weight = as_factor(hard_weight, "hard_weight")
        self._learned: dict[str, nn.Module] = {}
        self._pairs: dict[str, tuple[PlacePair, ...]] = {}

    def __repr__(self) -> str:
        return f"DistillationObjective(losses={self.losses}, weight={self.weights}, hard_weight={self.hard_weight})"

    @property
    def has_schedule(self) -> bool:
        """Whether any weight, or a setting of a loss, changes while training goes on."""
        weights = (*self.weights.values(), self.hard_weight)
        return any(isinstance(weight, Schedule) for weight in weights) or any(
            loss.has_schedule for loss in self.losses.values()
        )

    def look_at(self, student: Side, teacher: Side) -> tuple[list[Place], list[Place]]:
        """Find the places that losses look at; returns those of the student and those of the teacher.

        Raises:
            TargetError: If one is in neither network.
        """
        for key, loss in self.losses.items():
            try:
                self._pairs[key] = loss.pairs(student, teacher)
            except TargetError as error:
                raise TargetError(f"loss {key!r}: {error}") from error
        both = [pair for pairs in self._pairs.values() for pair in pairs]
        return [mine for mine, _ in both], [theirs for _, theirs in both]

    def make_learned(self, student: Recording, teacher: Recording) -> dict[str, nn.Module]:
        """Make what learns inside the losses, by key, on the CPU and with weights that depend on the sizes alone.

        It learns in at least float32, in whatever number format the student computes.

        Args:
            student: The student's first call.
            teacher: The teacher's answer.
        """
        self._learned = {}
        with torch.random.fork_rng(devices=[]), default_float32():
            torch.manual_seed(0)
            for key, loss in self.losses.items():
                observed = self._observed(key, student, teacher)
                made = loss.make_learned(*observed)
                if made is not None:
                    self._learned[key] = made.to(_dtype_of(observed[0]))
        return self._learned

    def compare(self, pairs: Sequence[tuple[Recording, Recording]], progress: float, batch: Any) -> dict[str, Tensor]:
        """Return each transfer loss by key, unweighted, in the mean over pairs.

        Args:
            pairs: The student's calls, each with the teacher's answer; at least one.
            progress: How far through its window distillation is.
            batch: The batch.
        """
        values: dict[str, Tensor] = {}
        for key, loss in self.losses.items():
            _check_teaches(pairs[0][0], [mine for mine, _ in self._pairs.get(key, ())])
            context = Context(progress=progress, batch=batch, learned=self._learned.get(key))
            found = [loss(*self._observed(key, *pair), context) for pair in pairs]
            values[key] = found[0] if len(found) == 1 else torch.stack(found).mean()
        return values

    def _observed(self, key: str, student: Recording, teacher: Recording) -> tuple[Observation, Observation]:
        pairs = self._pairs.get(key, ())
        return student.at(mine for mine, _ in pairs), teacher.at(theirs for _, theirs in pairs)

    def total(self, own: Tensor, values: Mapping[str, Tensor], progress: float) -> Tensor:
        """Return the loss to train with.

        Args:
            own: The student's own loss, a scalar.
            values: Transfer losses by key, from ``compare``.
            progress: How far through its window distillation is, in ``[0, 1]``.
        """
        total = own * factor_at(self.hard_weight, progress)
        for key, value in values.items():
            total = total + factor_at(self.weights[key], progress) * value
        return total


def _dtype_of(student: Observation) -> torch.dtype:
    """Number format in which a loss compares what it has seen."""
    found = [tensor for tensor in tensors_of((student.features, student.output)) if tensor.is_floating_point()]
    return computing_dtype(found[0].dtype) if found else torch.float32


def _check_teaches(student: Recording, places: Sequence[Place]) -> None:
    """Refuse features that have no gradient while one is recorded: a loss on them would teach the student nothing."""
    for place in places:
        has_gradient = any(tensor.requires_grad for tensor in tensors_of(student.features[place]))
        if torch.is_grad_enabled() and not has_gradient:
            raise TapError(
                f"the student's features at {str(place)!r} have no gradient, so a loss on them would teach it nothing: "
                "look at a place after trainable weights, and checkpoint activations with use_reentrant=False"
            )


def _as_weights(weight: Any, keys: list[str]) -> dict[str, LossWeight]:
    weights = as_factors(weight, keys, "weight", "losses")
    if all(value == 0.0 for value in weights.values()):
        raise ValueError("every transfer loss has weight 0, so the teacher would do nothing: raise one of the weights")
    return weights
