"""Mean-activation criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need, Statistic

_ACTIVITY = Statistic(name="mean absolute activation", of=Evidence.OUTPUT, term=torch.abs)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class MeanActivation(Criterion):
    """Mean-activation criterion: ``(1 / N) * sum_i |a_i|``, ``a_i`` a neuron's activation on sample ``i``.

    The mean runs over every sample and position seen since the last pruning step. Channels are judged by their value
    as the next layers read it, after normalization and non-linearity; single weights by the output of their own layer.

    Example:
        >>> (activity,) = MeanActivation().needs
        >>> gathered = {"totals": {activity: torch.tensor([6.0, 2.0])}, "counts": {activity: 4}}
        >>> MeanActivation()(LayerEvidence(name="conv.weight", weight=torch.zeros(2, 1), **gathered))
        tensor([1.5000, 0.5000])
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({_ACTIVITY})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        return seen.mean(_ACTIVITY)
