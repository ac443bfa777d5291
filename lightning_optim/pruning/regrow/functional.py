"""Arithmetic of regrowth."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from lightning_optim.pruning.functional import drop_lowest


def exchange(
    keep: Tensor, weight: Tensor, growth_score: Tensor, fraction: float, group: distributed.ProcessGroup | None = None
) -> Tensor:
    """Drop the smallest of the kept weights, and bring back as many of the others, the highest growth score first.

    A weight that has just been dropped may come back (as in algorithm 1 of Evci et al., 2020; arXiv:1911.11134).

    Args:
        keep: Boolean mask of the weights that are left.
        weight: The weights, shaped as ``keep``.
        growth_score: How much each is wanted back; finite, shaped as ``keep``.
        fraction: Share of the kept weights to exchange, in ``[0, 1]``.
        group: Process group over which the tensors are sharded; ``None`` if each rank sees all of them.

    Returns:
        Boolean mask with as many ``True`` as ``keep`` (over all ranks of ``group``).

    Raises:
        ValueError: If a weight or a growth score is not a number.

    Example:
        >>> exchange(torch.tensor([True, True, False, False]), torch.tensor([3.0, 1.0, 0.0, 0.0]),
        ...     growth_score=torch.tensor([0.0, 0.0, 2.0, 5.0]), fraction=0.5)
        tensor([ True, False, False,  True])
    """
    counts = torch.tensor([keep.numel(), int(keep.count_nonzero())], device=keep.device)
    if group is not None:
        distributed.all_reduce(counts, group=group)
    total, left = counts.tolist()
    # NaN survives the masking, so that it is refused rather than dropped.
    magnitude = weight.detach().float().abs().masked_fill(~keep & ~weight.isnan(), -torch.inf)
    stays = drop_lowest([magnitude], total - left + round(fraction * left), group)[0]
    wanted = growth_score.float().masked_fill(stays & ~growth_score.isnan(), torch.inf)
    return drop_lowest([wanted], total - left, group)[0]
