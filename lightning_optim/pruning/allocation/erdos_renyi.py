"""ERK allocation: small layers stay denser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.allocation.functional import share_out
from lightning_optim.pruning.functional import drop_lowest


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ErdosRenyi(Allocation):
    """Erdos-Renyi-Kernel allocation (ERK): density in proportion to the sum of a layer's sides over their product.

    Mocanu et al. (2018; arXiv:1707.04780) for linear layers; with kernel sizes, Evci et al. (2020; arXiv:1911.11134).
    Layers that would be more than dense stay dense, and the others make up for it. The pools are single weights, blocks
    or N:M patterns; pools without sides, such as channels, are refused.

    Example:
        >>> scores = {"wide": torch.rand(8, 8), "narrow": torch.rand(2, 4)}
        >>> masks = ErdosRenyi()(scores, 0.5)
        >>> [int(mask.sum()) for mask in masks.values()]
        [28, 8]
    """

    @override
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        rows, gone, stays = _counts(scores, group)
        shapes = [(row, *score.shape[1:]) for row, score in zip(rows, scores.values(), strict=True)]
        sizes = [int(torch.Size(shape).numel()) for shape in shapes]
        bounds = [(stay, size - away) for stay, away, size in zip(stays, gone, sizes, strict=True)]
        # A density in proportion to sum / product keeps entries in proportion to the sum.
        kept = share_out(sum(sizes) - round(sparsity * sum(sizes)), [float(sum(shape)) for shape in shapes], bounds)
        drops = [size - keep for size, keep in zip(sizes, kept, strict=True)]
        return {
            name: drop_lowest([score], drop, group)[0]
            for (name, score), drop in zip(scores.items(), drops, strict=True)
        }


def _counts(scores: Mapping[str, Tensor], group: distributed.ProcessGroup | None) -> list[list[int]]:
    """Rows, entries that have gone and entries that must stay of each pool, over all ranks."""
    flat = [name for name, score in scores.items() if score.dim() < 2]
    if flat:
        raise ValueError(
            f"'ErdosRenyi' goes by the sides of a weight, but the pool of {flat[0]} has none: "
            "choose another allocation for whole neurons, channels, heads or layers"
        )
    counts = [[len(score), int(score.isneginf().sum()), int(score.isposinf().sum())] for score in scores.values()]
    table = torch.tensor(counts, device=next(iter(scores.values())).device)
    if group is not None:
        distributed.all_reduce(table, group=group)
    found: list[list[int]] = table.T.tolist()
    return found
