"""Evidence: what a criterion may look at, statistics of it, and their running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, final

import torch
from torch import Tensor, nn


class Evidence(Enum):
    """A kind of evidence. Weight and module are at hand; of the others, a ``Statistic`` is gathered while training."""

    WEIGHT = "weight"
    GRADIENT = "gradient"
    INPUT = "input"
    OUTPUT = "output"
    MODULE = "module"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """Statistic: what is summed of one kind of evidence; criteria that need the same one share its sums.

    Args:
        name: Tells it from all others, in a checkpoint too.
        of: ``Evidence.GRADIENT``, ``INPUT`` or ``OUTPUT``.
        term: Of a gradient, ``term(weight, gradient)`` is added at each optimizer step, both float32; what it returns
            is shaped as the weight, or has one entry per output channel. Of activations, ``term(values)`` is
            element by element, and is summed over all samples and positions of a channel.
        resets_at_step: Whether each pruning step starts the sum afresh; if not, it goes on.

    Example:
        >>> energy = Statistic(name="energy", of=Evidence.INPUT, term=torch.square)
        >>> running_sum = energy.start()
        >>> running_sum.update("conv", torch.tensor([5.0, 1.0]), count=2)
        >>> running_sum.mean()["conv"]
        tensor([2.5000, 0.5000])
    """

    name: str
    of: Evidence
    term: Callable[..., Tensor]
    resets_at_step: bool = True

    def __post_init__(self) -> None:
        if self.of not in (Evidence.GRADIENT, Evidence.INPUT, Evidence.OUTPUT):
            raise ValueError(f"a statistic is of gradients, inputs or outputs, got {self.of}")

    def start(self) -> RunningSum:
        """Begin to sum."""
        return RunningSum()


Need = Evidence | Statistic
"""What a criterion may ask for."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEvidence:
    """Evidence on one layer, when its weights are scored.

    Args:
        name: The name of the layer's weight.
        weight: This rank's part of it; for a convolution or linear layer, output channels come first.
        falls: What falls together: single weights and blocks of them, or all that makes an output channel.
        norm: The batch norm that reads the layer's output, if the criterion needs ``Evidence.MODULE`` and there is one.
        totals: By statistic, its sum over all steps and ranks; of activations their mean, as if of one term.
        counts: By statistic, how many terms the sum has.
    """

    name: str
    weight: Tensor
    falls: Literal["weight", "channel"] = "weight"
    norm: nn.Module | None = None
    totals: Mapping[Statistic, Tensor] = field(default_factory=dict)
    counts: Mapping[Statistic, int] = field(default_factory=dict)

    def total(self, statistic: Statistic) -> Tensor:
        """Sum of ``statistic``.

        Raises:
            ValueError: If it was not gathered for this layer.
        """
        if statistic not in self.totals:
            raise ValueError(
                f"{statistic.name} of {self.name} is needed, but nothing of it was seen: "
                f"is its {statistic.of.value} unused? Leave it out in targets.exclude"
            )
        return self.totals[statistic]

    def mean(self, statistic: Statistic) -> Tensor:
        """Mean of ``statistic`` over its terms.

        Raises:
            ValueError: If it was not gathered for this layer.
        """
        return self.total(statistic) / self.counts[statistic]


@final
class RunningSum:
    """Running sums by layer, and of how many terms each is."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.totals

    def __bool__(self) -> bool:
        return bool(self.totals)

    def update(self, name: str, total: Tensor, count: int = 1) -> None:
        """Add ``total``, which is the sum of ``count`` terms."""
        self.totals[name] = self.totals[name] + total if name in self.totals else total.clone()
        self.counts[name] = self.counts.get(name, 0) + count

    def mean(self) -> dict[str, Tensor]:
        """Mean term of every layer, on this rank."""
        return {name: total / self.counts[name] for name, total in self.totals.items()}

    def keep(self, name: str, dim: int, index: Tensor) -> None:
        """Follow a weight that was cut to the positions ``index`` of ``dim``; a sum without that dimension stays."""
        total = self.totals.get(name)
        if total is not None and dim < total.dim():
            self.totals[name] = total.index_select(dim, index.to(total.device))

    def reset(self) -> None:
        """Forget everything."""
        self.totals, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts, as plain tensors and integers."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Continue from ``state_dict``, on ``device`` if given."""
        self.totals = {name: total if device is None else total.to(device) for name, total in state["totals"].items()}
        self.counts = dict(state["counts"])


def measure(term: Callable[..., Tensor], activation: Tensor, channel_dim: int) -> tuple[Tensor, int]:
    """Sum ``term`` over every dimension of an activation but ``channel_dim``.

    Returns:
        ``[channels]``, float32, and how many terms each entry is the sum of.

    Example:
        >>> measure(torch.abs, torch.tensor([[[1.0, -3.0]], [[2.0, 2.0]]]), channel_dim=1)
        (tensor([8.]), 4)
    """
    flat = activation.detach().movedim(channel_dim, 0).reshape(activation.shape[channel_dim], -1)
    return term(flat).sum(1, dtype=torch.float32), flat.shape[1]


def merge_ranks(running_sums: Sequence[RunningSum], all_reduce: Callable[[Tensor], object]) -> None:
    """Make every rank's sums those of all ranks, in one collective.

    Args:
        running_sums: Running sums over the same layers, in the same order, on every rank.
        all_reduce: Sums a flat float64 tensor over the ranks, in place.
    """
    totals = [total for running_sum in running_sums for total in running_sum.totals.values()]
    if not totals:
        return
    counts = [count for running_sum in running_sums for count in running_sum.counts.values()]
    flat = torch.cat(
        [torch.tensor(counts, dtype=torch.float64, device=totals[0].device), *(t.double().flatten() for t in totals)]
    )
    all_reduce(flat)
    merged = iter(torch.split(flat[len(counts) :], [total.numel() for total in totals]))
    summed = iter(flat[: len(counts)].tolist())
    for running_sum in running_sums:
        running_sum.counts = {name: int(next(summed)) for name in running_sum.counts}
        running_sum.totals = {name: next(merged).float().view_as(total) for name, total in running_sum.totals.items()}
