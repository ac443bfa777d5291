"""Movement criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.functional import negative_product
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need, Statistic

_MOVEMENT = Statistic(name="movement", of=Evidence.GRADIENT, term=negative_product, resets_at_step=False)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Movement(Criterion):
    """Movement criterion: ``-sum_t g_t * w_t`` over all optimizer steps ``t`` so far; what shrinks is to go.

    Sanh et al., 2020; arXiv:2005.07683, section 4 (the sum that their straight-through scores accumulate, without its
    constant factor). It is meant for fine-tuning: what matters to the new task need not be large. The sum goes on over
    pruning steps. A weight at zero no longer moves, so that what is pruned stays pruned.

    Example:
        >>> import torch
        >>> (movement,) = Movement().needs
        >>> gathered = {"totals": {movement: torch.tensor([[0.5, -2.0]])}, "counts": {movement: 2}}
        >>> Movement()(LayerEvidence(name="linear.weight", weight=torch.ones(1, 2), **gathered))
        tensor([[ 0.5000, -2.0000]])
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({_MOVEMENT})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        return seen.total(_MOVEMENT)
