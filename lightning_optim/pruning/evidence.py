"""What a criterion may look at, and the meter that gathers activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

import torch
from torch import Tensor


class Evidence(Enum):
    """A kind of evidence that a criterion needs."""

    WEIGHT = "weight"
    OUTPUT = "output"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of one layer when its weights are scored.

    Args:
        name: The layer's name.
        weight: Its weight; for a convolution or linear layer, output channels come first.
        mean_abs_output: ``[channels]``, mean absolute activation of every output channel; ``None`` unless the criterion
            needs ``Evidence.OUTPUT``.
    """

    name: str
    weight: Tensor
    mean_abs_output: Tensor | None = None


@final
class ActivationMeter:
    """Mean absolute activation per channel, accumulated over batches.

    Example:
        >>> meter = ActivationMeter()
        >>> meter.update("conv", torch.tensor([[[1.0, -3.0]], [[2.0, 2.0]]]), channel_dim=1)
        >>> meter.mean()["conv"]
        tensor([2.])
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def update(self, name: str, activation: Tensor, channel_dim: int) -> None:
        """Add one batch of activations; every dimension but ``channel_dim`` is averaged over."""
        channels = activation.shape[channel_dim]
        flat = activation.detach().movedim(channel_dim, 0).reshape(channels, -1)
        total = flat.abs().sum(1, dtype=torch.float32)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + flat.shape[1]

    def mean(self) -> dict[str, Tensor]:
        """Mean absolute activation of every channel seen so far, on this rank."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def sum_over_ranks(self, all_reduce: Callable[[Tensor], None]) -> None:
        """Merge what every rank has seen, in one collective.

        Args:
            all_reduce: Sums a flat float64 tensor over the ranks, in place.
        """
        if not self._sums:
            return
        sizes = [total.numel() for total in self._sums.values()]
        counts = torch.tensor(
            list(self._counts.values()), dtype=torch.float64, device=next(iter(self._sums.values())).device
        )
        flat = torch.cat([counts, *(total.double() for total in self._sums.values())])
        all_reduce(flat)
        merged = torch.split(flat[len(sizes) :], sizes)
        self._counts = {name: int(count) for name, count in zip(self._counts, flat, strict=False)}
        self._sums = {name: total.float() for name, total in zip(self._sums, merged, strict=True)}

    def reset(self) -> None:
        """Forget everything."""
        self._sums, self._counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts, as plain tensors and integers."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
