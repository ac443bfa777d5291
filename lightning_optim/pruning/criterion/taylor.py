"""Taylor criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.functional import squared_channel_product, squared_product
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need, Statistic

_STATISTICS = {
    "weight": Statistic(name="squared weight times gradient", of=Evidence.GRADIENT, term=squared_product),
    "channel": Statistic(
        name="squared sum of weight times gradient", of=Evidence.GRADIENT, term=squared_channel_product
    ),
}


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Taylor(Criterion):
    """Taylor criterion: ``(g * w) ** 2``, the squared change of the loss, to first order, were the weight zero.

    Molchanov et al., 2019; arXiv:1906.10771, section 3.1, averaged over the optimizer steps since the last pruning
    step; ``g`` is what the optimizer is given, before clipping.

    Args:
        over: What goes to zero at once: each ``"weight"`` by itself (a channel's score is then the sum over its
            weights), or a layer's whole output ``"channel"`` (the square of the sum, as of the paper's gate at the
            output), which all weights of the channel share.

    Raises:
        ValueError: If ``over`` is neither.

    Example:
        >>> import torch
        >>> (product,) = Taylor().needs
        >>> gathered = {"totals": {product: torch.tensor([[2.0, 8.0]])}, "counts": {product: 2}}
        >>> Taylor()(LayerEvidence(name="conv.weight", weight=torch.ones(1, 2), **gathered))
        tensor([[1., 4.]])
    """

    over: Literal["weight", "channel"] = "weight"

    def __post_init__(self) -> None:
        if self.over not in _STATISTICS:
            raise ValueError(f"over must be 'weight' or 'channel', got {self.over!r}")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({_STATISTICS[self.over]})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        return seen.mean(_STATISTICS[self.over])
