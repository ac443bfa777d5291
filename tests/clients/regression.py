"""Transfer loss of regression, as a user writes one for a configuration to name."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_optim.distillation import Context, Loss


@final
@dataclass(frozen=True, kw_only=True)
class MeanSquare(Loss):
    """Mean square of what the student's first output is off the teacher's."""

    @override
    def __call__(self, student: Any, teacher: Any, context: Context) -> Tensor:
        own, other = (first(call.output) for call in (student, teacher))
        return torch.nn.functional.mse_loss(own, other)


def first(output: object) -> Tensor:
    """The first tensor of an output."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
