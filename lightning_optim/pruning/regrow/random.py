"""Random regrowth (SET)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.regrow.base import Regrowth, check_fraction


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRegrowth(Regrowth):
    """Random regrowth (SET): the smallest weights give way to random ones (Mocanu et al., 2018).

    arXiv:1707.04780, algorithm 1.

    Args:
        fraction: Share of the weights left that is replaced at the window's first jump, in ``(0, 1)``; it falls to 0
            along a cosine.
        seed: Seeds the choice, the same on every rank and after a resume.

    Raises:
        ValueError: If ``fraction`` is outside ``(0, 1)``.

    Example:
        >>> wanted = RandomRegrowth().growth_score(torch.zeros(2, 3), None, seed=1)
        >>> torch.equal(wanted, RandomRegrowth().growth_score(torch.zeros(2, 3), None, seed=1))
        True
    """

    needs_gradient: ClassVar[bool] = False

    fraction: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    @override
    def growth_score(self, weight: Tensor, gradient: Tensor | None, seed: int) -> Tensor:
        # Drawn on the CPU: generators of other devices give other numbers.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
