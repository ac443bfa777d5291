"""SNIP criterion: sensitivity of the loss to a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.functional import negative_product
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need, Statistic

_SENSITIVITY = Statistic(name="sensitivity of connections", of=Evidence.GRADIENT, term=negative_product)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SNIP(Criterion):
    """SNIP criterion: ``|dL / dc|``, ``c`` a factor of one before the weight; the magnitude of the mean of ``g * w``.

    Lee et al., 2019; arXiv:1810.02340, equation 5, without the division by the sum over all connections, which changes
    no order. It is meant for pruning once, before training, in a window that ends after the first steps. The mean runs
    over the optimizer steps since the last pruning step; signs cancel, as they would in one large batch.

    Example:
        >>> import torch
        >>> (sensitivity,) = SNIP().needs
        >>> gathered = {"totals": {sensitivity: torch.tensor([[0.5, -2.0]])}, "counts": {sensitivity: 2}}
        >>> SNIP()(LayerEvidence(name="conv.weight", weight=torch.ones(1, 2), **gathered))
        tensor([[0.2500, 1.0000]])
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({_SENSITIVITY})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        return seen.mean(_SENSITIVITY).abs()
