"""Loss curves of a stage: what its training steps were trained with, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from lightning_optim.errors import ArtefactError

TASK, TOTAL = "task", "total"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurves:
    """Loss curves of one stage, over its training batches.

    Args:
        batches: Number of the batch with which each point ends, from 1; a point is the mean over the batches since the
            point before it.
        values: Curve -> its value at each point, ``None`` where there is none: ``task`` is the module's own loss and
            a name such as ``distillation/soft_target`` a term that a callback adds, both before they are multiplied by
            their weights; ``total`` is what was trained with, weights included.

    Raises:
        ValueError: If a curve has another number of points.

    Example:
        >>> LossCurves(batches=[1, 2], values={"task": [2.0, float("nan")]}).to_dict()
        {'batches': [1, 2], 'values': {'task': [2.0, None]}}
    """

    batches: Sequence[int]
    values: Mapping[str, Sequence[float | None]]

    def __post_init__(self) -> None:
        finite = {name: tuple(map(_finite, curve)) for name, curve in self.values.items()}
        object.__setattr__(self, "batches", tuple(self.batches))
        object.__setattr__(self, "values", finite)
        for name, curve in finite.items():
            if len(curve) != len(self.batches):
                raise ValueError(f"curve {name!r} has {len(curve)} points, the others have {len(self.batches)}")

    @property
    def terms(self) -> dict[str, Sequence[float | None]]:
        """The curves of what callbacks have added."""
        return {name: curve for name, curve in self.values.items() if name not in (TASK, TOTAL)}

    def to_dict(self) -> dict[str, Any]:
        """Return the curves as primitives, for JSON."""
        return {"batches": list(self.batches), "values": {name: list(curve) for name, curve in self.values.items()}}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> LossCurves:
        """Return the curves that ``to_dict`` turned into primitives.

        Raises:
            ArtefactError: If they are none.
        """
        try:
            return LossCurves(**values)
        except (AttributeError, TypeError, ValueError) as error:
            raise ArtefactError(f"no curves of losses: {error}") from error


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
