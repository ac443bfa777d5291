"""Regrowth by gradient (RigL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.regrow.base import Regrowth, check_fraction


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRegrowth(Regrowth):
    """Regrowth by gradient (RigL): the smallest weights give way to those with the largest dense gradient.

    Evci et al., 2020; arXiv:1911.11134, section 3 (4).

    Args:
        fraction: Share of the weights left that is replaced at the window's first jump, in ``(0, 1)``; it falls to 0
            along a cosine.

    Raises:
        ValueError: If ``fraction`` is outside ``(0, 1)``.

    Example:
        >>> import torch
        >>> GradientRegrowth().growth_score(torch.zeros(2), torch.tensor([-2.0, 1.0]), seed=0)
        tensor([2., 1.])
    """

    needs_gradient: ClassVar[bool] = True

    fraction: float = 0.3

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    @override
    def growth_score(self, weight: Tensor, gradient: Tensor | None, seed: int) -> Tensor:
        if gradient is None:
            raise ValueError("'GradientRegrowth' needs the gradient of every weight, but one has none: is it frozen?")
        return gradient.detach().abs()
