"""Settings of penalties: which there are, how strong each is, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from lightning_optim.checked import by_key
from lightning_optim.regularization.penalty.base import Penalty
from lightning_optim.regularization.penalty.l2 import L2
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.factor import Factor, as_factors, factor_at
from lightning_optim.surgery.select import Targets


@final
class PenaltySettings:
    """Settings of several penalties, by key.

    Args:
        penalties: Penalties by key, or one, whose key is its class name in snake case.
        strength: Factor of every penalty, or of each by key; numbers of at least 0, or schedules.
        targets: What every penalty looks at, or each by key; ``None``, and a key that is left out, is all.
        decoupled: Keys of the penalties that are applied after each optimizer step.

    Raises:
        TypeError: If a strength is of another kind.
        ValueError: If a strength is out of range, keys differ, all penalties have strength 0, or a penalty that is to
            be applied after the step is no L2.

    Example:
        >>> settings = PenaltySettings(L2(), strength=0.5, targets=None, decoupled=())
        >>> settings.add(Tensor([1.0]), {"l2": Tensor([4.0])}, progress=0.0)
        tensor([3.])
    """

    def __init__(
        self,
        penalties: Penalty | Mapping[str, Penalty],
        strength: Factor | Mapping[str, Factor],
        targets: Targets | Mapping[str, Targets] | None,
        decoupled: Sequence[str],
    ) -> None:
        self.penalties: dict[str, Penalty] = by_key("penalties", penalties, Penalty, "penalty")  # type: ignore[type-abstract]
        self.strengths = as_factors(strength, [*self.penalties], "strength", "penalties")
        if all(value == 0.0 for value in self.strengths.values()):
            raise ValueError(
                "every penalty has strength 0, so there would be nothing to do: raise one of the strengths"
            )
        self.targets = self._targets_by_key(targets)
        self.decoupled = tuple(decoupled)
        self._check_decoupled()

    def __repr__(self) -> str:
        return f"PenaltySettings({self.penalties}, {self.strengths}, {self.targets}, {self.decoupled})"

    @property
    def has_schedule(self) -> bool:
        """Whether any strength changes while training goes on."""
        return any(isinstance(strength, Schedule) for strength in self.strengths.values())

    @property
    def needs_groups(self) -> bool:
        """Whether any penalty must know which channels are coupled."""
        return any(penalty.needs_groups for penalty in self.penalties.values())

    @property
    def needs_responses(self) -> bool:
        """Whether any penalty differentiates the network's output by its inputs."""
        return any(penalty.needs_responses for penalty in self.penalties.values())

    def strength(self, key: str, progress: float) -> float:
        """Factor of a penalty at a progress in ``[0, 1]``."""
        return factor_at(self.strengths[key], progress)

    def add(self, loss: Tensor, values: Mapping[str, Tensor], progress: float) -> Tensor:
        """Return the loss to train with: each penalty that is not decoupled is added.

        Args:
            loss: The loss.
            values: Penalties by key.
            progress: How far through the window training is.
        """
        for key, value in values.items():
            if key not in self.decoupled:
                loss = loss + self.strength(key, progress) * value
        return loss

    def _targets_by_key(self, targets: Targets | Mapping[str, Targets] | None) -> dict[str, Targets]:
        if not isinstance(targets, Mapping):
            return dict.fromkeys(self.penalties, Targets() if targets is None else targets)
        unknown = sorted(targets.keys() - self.penalties.keys())
        if unknown:
            raise ValueError(f"targets names {unknown}, but the penalties are {sorted(self.penalties)}")
        for key in targets:
            if not self.penalties[key].treatable:
                raise ValueError(f"targets names {key!r}, which looks at the whole network: leave it out of targets")
        return {key: targets.get(key, Targets()) for key in self.penalties}

    def _check_decoupled(self) -> None:
        for key in self.decoupled:
            if key not in self.penalties:
                raise ValueError(f"decoupled names {key!r}, but the penalties are {sorted(self.penalties)}")
            if not isinstance(self.penalties[key], L2):
                raise ValueError(
                    f"decoupled names {key!r}, a {type(self.penalties[key]).__name__}: only L2 can be applied after "
                    "the optimizer's step; leave the others in the loss"
                )
