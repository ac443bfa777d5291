"""LAMP allocation: one threshold on scores that are relative to their layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.allocation.functional import lamp, sum_over_ranks
from lightning_optim.pruning.functional import drop_lowest


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LAMP(Allocation):
    """LAMP: drops what matters least beside what would stay of its layer (Lee et al., 2021; arXiv:2010.07611).

    One threshold serves all layers: it is set on the squared score over the sum of the squares of all scores of the
    layer that are not lower (equation 5). No layer falls whole while another has more than one entry. With
    ``criterion=magnitude`` this is the paper's method.

    Example:
        >>> masks = LAMP()({"a": torch.tensor([1.0, 1.0, 1.0]), "b": torch.tensor([1.0, 10.0, 20.0])}, 0.34)
        >>> [mask.tolist() for mask in masks.values()]
        [[True, True, True], [False, False, True]]
    """

    @override
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        relative = {name: _of_whole_pool(name, score, group) for name, score in scores.items()}
        sizes = sum_over_ranks([score.numel() for score in scores.values()], scores, group)
        masks = drop_lowest(list(relative.values()), round(sparsity * sum(sizes)), group)
        drops = sum_over_ranks([int((~mask).sum()) for mask in masks], scores, group)
        # Relative scores of one layer may tie where the scores themselves do not.
        return {
            name: drop_lowest([score], drop, group)[0]
            for (name, score), drop in zip(scores.items(), drops, strict=True)
        }


def _of_whole_pool(name: str, score: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Scores of this rank's part, relative to all parts of the pool."""
    parts = [score.flatten()] if group is None else _gathered(score.flatten(), group)
    whole = torch.cat(parts)
    if bool((whole.isfinite() & (whole < 0.0)).any()):
        raise ValueError(
            f"'LAMP' compares squares, so that scores must be at least 0, but those of {name} are not: "
            "choose a criterion such as magnitude, or another allocation"
        )
    rank = 0 if group is None else distributed.get_rank(group)
    return torch.split(lamp(whole), [len(part) for part in parts])[rank].view(score.shape)


def _gathered(flat: Tensor, group: distributed.ProcessGroup) -> list[Tensor]:
    """The parts of every rank, which may differ in length."""
    ranks = distributed.get_world_size(group)
    mine = torch.tensor(len(flat), device=flat.device)
    sizes = [torch.zeros_like(mine) for _ in range(ranks)]
    distributed.all_gather(sizes, mine, group=group)
    longest = max(int(size) for size in sizes)
    parts = [flat.new_empty(longest) for _ in range(ranks)]
    distributed.all_gather(parts, torch.cat([flat, flat.new_zeros(longest - len(flat))]), group=group)
    return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
