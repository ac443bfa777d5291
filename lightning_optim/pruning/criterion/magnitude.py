"""Magnitude criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need
from lightning_optim.pruning.functional import magnitude


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude(Criterion):
    """Magnitude criterion: a weight scores ``|w| ** p`` (Han et al., 2015; arXiv:1506.02626).

    It is meant for single weights. It says less of whole channels where a batch norm follows, which undoes the scale of
    the layer before it; ``BatchNormScale`` says more there.

    Args:
        p: Exponent, above 0; matters only where scores are summed over a channel.

    Raises:
        ValueError: If ``p`` is not above 0.

    Example:
        >>> import torch
        >>> Magnitude(p=2.0)(LayerEvidence(name="conv.weight", weight=torch.tensor([[1.0, -3.0]])))
        tensor([[1., 9.]])
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        if not self.p > 0.0:
            raise ValueError(f"p must be above 0, got {self.p}")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({Evidence.WEIGHT})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        return magnitude(seen.weight.detach(), self.p)
