"""Active neurons matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, Seen


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeanActivation(Criterion):
    """Score a neuron or channel by ``(1 / N) * sum_i |a_i|``, ``a_i`` its activation on sample ``i``.

    The mean runs over every sample and position seen since the last pruning step. Channels are judged by their value
    as the next layers read it, after normalization and non-linearity; single weights by the output of their own layer.
    """

    needs: ClassVar[frozenset[Evidence]] = frozenset({Evidence.OUTPUT})

    @override
    def __call__(self, seen: Seen) -> Tensor:
        if seen.mean_abs_output is None:
            raise ValueError(f"'MeanActivation' needs activations of {seen.name}, but none were gathered")
        return seen.mean_abs_output
