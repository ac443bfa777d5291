"""Running sums of all ranks of a job, in one checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_optim.surgery.torch_private import pytree

State = dict[str, Any]
"""States of running sums, by the name of their statistic."""


def gather_ranks(own: State, num_ranks: int) -> list[State]:
    """The states of all ranks, in their order; a collective call."""
    if num_ranks == 1:
        return [own]
    everyone: list[Any] = [None] * num_ranks
    distributed.all_gather_object(everyone, pytree.tree_map(_on_cpu, own))
    return everyone


def share_of_rank(everyone: Sequence[State], rank: int, num_ranks: int, sharded: Collection[str]) -> State:
    """What a rank goes on with: its own sums, or a share that adds up to all of them if the number of ranks changed.

    Args:
        everyone: What ``gather_ranks`` returned.
        rank: The rank, from 0.
        num_ranks: How many there are now.
        sharded: Statistics of which each rank has another part; if the number of ranks has changed, they are lost, with
            a warning.
    """
    if len(everyone) == num_ranks:
        return everyone[rank]
    lost = sorted(name for name in sharded if everyone[0].get(name, {}).get("totals"))
    if lost:
        warnings.warn(
            f"{', '.join(lost)} of {len(everyone)} ranks cannot be spread over {num_ranks}: they are gathered afresh",
            stacklevel=2,
        )
    merged = {name: _merge([state[name] for state in everyone]) for name in everyone[0] if name not in sharded}
    return merged if rank == 0 else {name: _nothing(state) for name, state in merged.items()}


def _on_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _merge(states: Sequence[State]) -> State:
    names = states[0]["totals"]
    return {
        "totals": {name: torch.stack([state["totals"][name] for state in states]).sum(0) for name in names},
        "counts": {name: sum(state["counts"][name] for state in states) for name in names},
    }


def _nothing(state: State) -> State:
    """Sums of no terms, so that all ranks know the same layers."""
    return {
        "totals": {name: torch.zeros_like(total) for name, total in state["totals"].items()},
        "counts": dict.fromkeys(state["counts"], 0),
    }
