"""Interface of sharpness-aware steps: where weights are moved before the gradient is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn

from lightning_optim.regularization.penalty.base import own_matrices
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.factor import Factor, as_factor, factor_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness(ABC):
    """Sharpness: the weights are moved to where the loss around them is about highest.

    Args:
        rho: Length of the move, above 0; a number, or a schedule over the callback's window. At a value of 0, steps are
            plain.
        parameters: ``"all"`` of a targeted layer's own parameters, or ``"matrices"`` of two or more dimensions, no bias
            and no scale of a norm.
    """

    rho: Factor
    parameters: Literal["all", "matrices"] = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", as_factor(self.rho, "rho"))
        if self.rho == 0.0:
            raise ValueError("rho must be above 0, got 0: without a move nothing would change; leave the callback out")

    @abstractmethod
    def moves(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
        """Return how far each weight moves; nothing moves where the gradients are not finite.

        Args:
            weights: The weights.
            gradients: Their gradients.
            rho: Length of the move.
        """

    @final
    def parameter_names(self, layer: nn.Module) -> list[str]:
        """Names of a targeted layer's own parameters that are moved."""
        if self.parameters == "matrices":
            return own_matrices(layer)
        return [name for name, _ in layer.named_parameters(recurse=False)]

    @final
    def rho_at(self, progress: float) -> float:
        """Length of the move at a progress in ``[0, 1]``."""
        return factor_at(self.rho, progress)

    @property
    @final
    def has_schedule(self) -> bool:
        """Whether the length changes while training goes on."""
        return isinstance(self.rho, Schedule)
