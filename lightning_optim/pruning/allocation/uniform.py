"""Uniform allocation: the same sparsity everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.functional import drop_lowest


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Allocation):
    """Uniform allocation: drops the same fraction of every pool.

    Example:
        >>> masks = Uniform()({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([8.0, 9.0])}, 0.5)
        >>> masks["b"]
        tensor([False,  True])
    """

    @override
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        masks = {}
        for name, score in scores.items():
            size = torch.tensor(score.numel(), device=score.device)
            if group is not None:
                distributed.all_reduce(size, group=group)
            masks[name] = drop_lowest([score], round(sparsity * int(size)), group)[0]
        return masks
