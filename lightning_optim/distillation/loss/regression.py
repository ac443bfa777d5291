"""Base of losses that compare outputs number by number."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.distillation.functional import Reduction, check_reduction, reduce_positions
from lightning_optim.distillation.loss.base import Context
from lightning_optim.distillation.loss.output import OutputLoss
from lightning_optim.distillation.observation import Observation
from lightning_optim.surgery.precision import at_least_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionLoss(OutputLoss):
    """Regression loss: a price for the difference of each number of the student's output from the teacher's.

    Args:
        reduction: ``"mean"`` over all numbers of valid positions, or ``"sum"``.
        output: Where the tensor is in the student's output; see ``OutputLoss``.
        teacher_output: Where it is in the teacher's output.
        mask: Keyword argument of the network's call that marks valid positions; it has the first axes of the output.
    """

    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        mine, theirs = self.outputs(student, teacher)
        if mine.shape != theirs.shape:
            raise ValueError(
                f"the student's output has shape {list(mine.shape)}, the teacher's {list(theirs.shape)}: numbers are "
                "compared one by one, so distil from a teacher whose output has the student's shape"
            )
        mask = _widen(self.valid(student), mine)
        difference = at_least_float32(mine) - at_least_float32(theirs)
        if mask is not None:  # before the price, whose gradient at a number that is none would be none
            difference = torch.where(mask, difference, 0.0)
        return reduce_positions(self.price(difference), self.reduction, mask)

    @abstractmethod
    def price(self, difference: Tensor) -> Tensor:
        """Return what each difference costs.

        Args:
            difference: The student's numbers less the teacher's.
        """


def _widen(mask: Tensor | None, numbers: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape != numbers.shape[: mask.ndim]:
        raise ValueError(
            f"the mask has shape {list(mask.shape)}, but the output {list(numbers.shape)}: its axes must be the "
            "first of the output's"
        )
    return mask.view(*mask.shape, *[1] * (numbers.ndim - mask.ndim)).expand(numbers.shape)
