"""State of pruning: what of a network has gone so far, in the one record that pruning steps read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, final

from torch import Tensor

from lightning_optim.cost.prices import Prices, prices_from_state
from lightning_optim.pruning.masks import pack, unpack
from lightning_optim.surgery.cut import CutPlan
from lightning_optim.surgery.masked_norm import MaskedNorm

Cut = Mapping[str, Sequence[tuple[int, Tensor, int]]]
"""Tensor of the network -> its cuts: dimension, kept positions, original size."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PruningState:
    """State of pruning one network: decided, masked, due to be cut, cut.

    A pool's masks have its original size, so that sparsity stays absolute when channels are removed between steps.

    Args:
        reached: Sparsity that the last pruning step was asked for; ``None`` before the first.
        measured: Fraction of the original entries of all pools that are gone since then.
        sizes: Pool -> number of its original entries, from the first decision on that named it.
        decided: Names of the layers that the last pruning step looked at, in the order in which they name pools.
        alive: Pool -> entries that the last decision keeps.
        present: Pool -> entries that are physically there; a pool that was never cut is left out.
        norms: Layer -> what is left for it of masked channels, over which it takes a statistic.
        due: What is to be removed next.
        refused: Weights and pools whose channels cannot be cut, and stay.
        cut: All cuts so far as one, relative to the full-size network.
        prices: What the original network costs, and the largest value that the schedule reaches; under a budget alone.

    Example:
        >>> import torch
        >>> keep = {"conv.weight": torch.tensor([True, False, True])}
        >>> masked = PruningState().after_mask(keep).with_due({"conv.weight": [(0, torch.tensor([0, 2]))]})
        >>> small = masked.after_cut({"conv.weight": (3, 1)})
        >>> small.due, small.cut["conv.weight"][0][2], small.of_present(keep)["conv.weight"]
        ({}, 3, tensor([True, True]))
    """

    reached: float | None = None
    measured: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    decided: tuple[str, ...] = ()
    alive: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, MaskedNorm] = field(default_factory=dict)
    due: CutPlan = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    cut: Cut = field(default_factory=dict)
    prices: tuple[Prices, float] | None = None

    def after_mask(
        self, keep: Mapping[str, Tensor], norms: Mapping[str, MaskedNorm] = MappingProxyType({})
    ) -> PruningState:
        """The state once a decision is carried out by masks, which some layers must leave out."""
        return replace(self, alive={pool: mask.clone() for pool, mask in keep.items()}, norms=dict(norms))

    def with_due(self, plan: CutPlan, refused: frozenset[str] = frozenset()) -> PruningState:
        """The state once it is known what can be removed, and what cannot."""
        return replace(self, due=plan, refused=self.refused | refused)

    def after_cut(self, sizes: Mapping[str, tuple[int, ...]]) -> PruningState:
        """The state once what is due is removed: what the last decision does not keep is no longer there.

        Args:
            sizes: Shape of each tensor in ``due`` before the cut.
        """
        present = {pool: mask.clone() for pool, mask in self.alive.items()}
        return replace(self, present=present, norms={}, due={}, cut=_composed(self.cut, self.due, sizes))

    def with_sizes(self, keep: Mapping[str, Tensor]) -> PruningState:
        """The state that remembers how large the pools of a decision were when they were first decided on."""
        return replace(self, sizes={**{pool: mask.numel() for pool, mask in keep.items()}, **self.sizes})

    def count_left(self) -> tuple[int, int]:
        """Return how many entries of all pools are left, and how many there were; on this rank."""
        left = {pool: int(mask.sum()) for pool, mask in {**self.present, **self.alive}.items()}
        return sum(left.get(pool, size) for pool, size in self.sizes.items()), sum(self.sizes.values())

    def of_present(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A decision, restricted to what is still physically there."""
        return {pool: mask[self.present[pool]] if pool in self.present else mask for pool, mask in keep.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and primitives; masks as bits."""
        return {
            "reached": self.reached,
            "measured": self.measured,
            "sizes": dict(self.sizes),
            "decided": list(self.decided),
            "alive": _packed(self.alive),
            "present": _packed(self.present),
            "norms": {name: norm.state_dict() for name, norm in self.norms.items()},
            "due": {name: [list(cut) for cut in cuts] for name, cuts in self.due.items()},
            "refused": sorted(self.refused),
            "cut": {name: [list(cut) for cut in cuts] for name, cuts in self.cut.items()},
            "prices": None if self.prices is None else [self.prices[0].state_dict(), self.prices[1]],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PruningState:
        """The state that ``state_dict`` was taken from."""
        prices = state["prices"]
        return cls(
            reached=state["reached"],
            measured=state["measured"],
            sizes=state["sizes"],
            decided=tuple(state["decided"]),
            alive=_unpacked(state["alive"]),
            present=_unpacked(state["present"]),
            norms={name: MaskedNorm.from_state_dict(norm) for name, norm in state["norms"].items()},
            due={name: [(dim, kept) for dim, kept in cuts] for name, cuts in state["due"].items()},
            refused=frozenset(state["refused"]),
            cut={name: [(dim, kept, size) for dim, kept, size in cuts] for name, cuts in state["cut"].items()},
            prices=None if prices is None else (prices_from_state(prices[0]), prices[1]),
        )


def _composed(before: Cut, plan: CutPlan, sizes: Mapping[str, tuple[int, ...]]) -> Cut:
    """One cut that does what ``before`` and then ``plan`` do."""
    composed = {name: list(cuts) for name, cuts in before.items()}
    for name, cuts in plan.items():
        known = {dim: (kept, size) for dim, kept, size in composed.get(name, [])}
        for dim, kept in cuts:
            earlier, size = known.get(dim, (None, sizes[name][dim]))
            kept = kept.cpu()  # noqa: PLW2901  # the same cut, on the device of checkpoints
            known[dim] = (kept if earlier is None else earlier[kept], size)
        composed[name] = [(dim, kept, size) for dim, (kept, size) in known.items()]
    return composed


def _packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: {"bits": pack(mask), "shape": list(mask.shape)} for name, mask in masks.items()}


def _unpacked(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: unpack(entry["bits"], entry["shape"]) for name, entry in state.items()}
