"""Diagonal-Hessian criterion (optimal brain damage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.functional import squared_gradient
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need, Statistic

_FISHER = Statistic(name="squared gradient", of=Evidence.GRADIENT, term=squared_gradient)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class DiagonalHessian(Criterion):
    """Diagonal-Hessian criterion: ``h * w ** 2 / 2``, the rise of the loss, to second order, were the weight zero.

    This is optimal brain damage (LeCun et al., 1990, section 2). ``h`` stands for the diagonal of the Hessian, and is
    that of the empirical Fisher matrix: the mean of ``g ** 2`` over the optimizer steps since the last pruning step.
    ``g`` is the gradient of a whole batch, so that ``h`` is too small by a factor of its size, the same for all
    weights. ``w`` is the weight at the pruning step; ``Taylor`` takes the weights of the optimizer steps.

    Example:
        >>> import torch
        >>> (fisher,) = [need for need in DiagonalHessian().needs if isinstance(need, Statistic)]
        >>> gathered = {"totals": {fisher: torch.tensor([[2.0, 8.0]])}, "counts": {fisher: 2}}
        >>> DiagonalHessian()(LayerEvidence(name="conv.weight", weight=torch.tensor([[3.0, 1.0]]), **gathered))
        tensor([[4.5000, 2.0000]])
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({Evidence.WEIGHT, _FISHER})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        return seen.mean(_FISHER) * seen.weight.detach().float().square() / 2
