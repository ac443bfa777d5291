"""Ranges of several processes, merged into one."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from lightning_optim.quantization.simulation.ranges import Ranges


def merge_ranges(ranges: Ranges, device: torch.device) -> None:
    """End a batch: fold its ranges in, joined over all processes by one flat message, and by a second for histograms.

    Every process ends with the ranges that a single one would have found on all of their data. Names of activations
    travel only in a batch in which some process saw a new one.

    Args:
        ranges: The ranges of this process.
        device: Where the process group communicates.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        ranges.register(ranges.new_keys)
        ranges.merge(ranges.message())
        return
    count = torch.full((1,), float(len(ranges.new_keys)), device=device)
    message = _maximum(torch.cat([count, ranges.message(device)]))
    if int(message[0]):
        everyone: list[tuple[str, ...]] = [()] * distributed.get_world_size()
        distributed.all_gather_object(everyone, ranges.new_keys)
        ranges.register(tuple(sorted(set().union(*everyone))))
        message = _maximum(torch.cat([count, ranges.message(device)]))
    ranges.merge(message[1:], _sum)


def _sum(counts: Tensor) -> Tensor:
    distributed.all_reduce(counts)
    return counts


def _maximum(message: Tensor) -> Tensor:
    distributed.all_reduce(message, op=distributed.ReduceOp.MAX)
    return message
