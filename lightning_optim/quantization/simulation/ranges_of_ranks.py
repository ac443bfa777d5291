"""Ranges of several processes, merged into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_optim.quantization.simulation.ranges import Ranges


def merge_ranges(
    ranges: Ranges, device: torch.device, news: object = None, take_in: Callable[[list[Any]], None] | None = None
) -> None:
    """End a batch: fold its ranges in, joined over all processes by one flat message, and by a second for histograms.

    Every process ends with the ranges that a single one would have found on all of their data. Names of activations,
    and what else is new, travel only in a batch in which some process has any.

    Args:
        ranges: The ranges of this process.
        device: Where the process group communicates.
        news: What else this process has to say, to be pickled; ``None`` is nothing.
        take_in: Is given the news of all processes that have any, in the order of ranks, before ranges are joined.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        merge_alone(ranges, news, take_in)
        return
    has_news = torch.full((1,), float(bool(ranges.new_keys) or news is not None), device=device)
    message = _maximum(torch.cat([has_news, ranges.message(device)]))
    if int(message[0]):
        everyone: list[tuple[tuple[str, ...], Any]] = [((), None)] * distributed.get_world_size()
        distributed.all_gather_object(everyone, (ranges.new_keys, news))
        ranges.register(tuple(sorted(set().union(*(keys for keys, _ in everyone)))))
        told = [each for _, each in everyone if each is not None]
        if take_in is not None and told:
            take_in(told)
        message = _maximum(torch.cat([has_news, ranges.message(device)]))
    ranges.merge(message[1:], _sum)


def merge_alone(ranges: Ranges, news: object = None, take_in: Callable[[list[Any]], None] | None = None) -> None:
    """End a batch of this process alone; the arguments are those of ``merge_ranges``."""
    ranges.register(ranges.new_keys)
    if take_in is not None and news is not None:
        take_in([news])
    ranges.merge(ranges.message())


def _sum(counts: Tensor) -> Tensor:
    distributed.all_reduce(counts)
    return counts


def _maximum(message: Tensor) -> Tensor:
    distributed.all_reduce(message, op=distributed.ReduceOp.MAX)
    return message
