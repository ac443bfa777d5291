"""Global allocation: one threshold for the whole model."""

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
class GlobalThreshold(Allocation):
    """Global allocation: drops the lowest entries of all pools together, so that layers that matter less lose more.

    Example:
        >>> masks = GlobalThreshold()({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([8.0, 9.0])}, 0.5)
        >>> masks["b"]
        tensor([True, True])
    """

    @override
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        device = next(iter(scores.values())).device
        size = torch.tensor(sum(score.numel() for score in scores.values()), device=device)
        if group is not None:
            distributed.all_reduce(size, group=group)
        masks = drop_lowest(list(scores.values()), round(sparsity * int(size)), group)
        return dict(zip(scores, masks, strict=True))
