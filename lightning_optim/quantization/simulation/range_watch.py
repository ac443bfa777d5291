"""Watch over ranges: which of them a batch made useless, and why."""

# N activations

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.simulation.sentinels import LEAST_SENTINEL

INFINITE, NAN = 1.0, 2.0
"""Marks of an activation that held infinities, or NaN, in a batch."""

GROWTH = 16.0
"""How many times its size a range must grow in one batch to be named."""

LEAST_GROWN = 16.0
"""Smallest size that such a range has then."""

_MASKED = (
    "holds a mask's huge numbers, beside which one scale would round all others to zero: it stays in floating point "
    "from this batch on"
)


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Finding of a batch: an activation whose range one value takes nearly all of, or that holds no number.

    Args:
        key: Names the activation.
        low: Smallest value of the batch that is a number.
        high: Largest value.
        mark: ``INFINITE``, ``NAN``, or 0 if all of it is finite.
        is_masked: Whether it holds sentinels, and belongs to a sum, which stays in floating point from then on.
    """

    key: str
    low: float
    high: float
    mark: float = 0.0
    is_masked: bool = False

    def __str__(self) -> str:
        span = f"[{self.low:.4g}, {self.high:.4g}]"
        if self.is_masked:
            return f"{self.key} holds a mask's huge numbers: its sums stay in floating point"
        if self.mark:
            what = "NaN" if self.mark == NAN else "infinities"
            return f"{self.key} holds {what}, which no range covers: its range stays as it was before this batch"
        return (
            f"one value takes nearly all of the range of {self.key}, {span}: all others share few integers. Clip it, "
            "leave the layer out with targets.exclude, or choose an observer that clips, such as Percentile"
        )


def messages(findings: Sequence[Finding], operators: Iterable[str]) -> dict[str, str]:
    """Return what a batch's findings say, but for sums that hold sentinels: what it is about -> the message.

    What is not finite spreads to all that reads it, so the first of them speaks for the others.

    Args:
        findings: Findings.
        operators: Keys of all operators, in the order of the forward pass.
    """
    if not findings:
        return {}
    places = {key: place for place, key in enumerate(operators)}
    ordered = sorted(findings, key=lambda each: (places.get(each.key.partition("<")[0], -1), "<" not in each.key))
    said = {each.key: str(each) for each in ordered if not each.mark and not each.is_masked}
    broken = [each for each in ordered if each.mark and not each.is_masked]
    if broken:
        others = f" ({len(broken) - 1} others behind it hold such values too)" if len(broken) > 1 else ""
        said[f"{broken[0].key} {broken[0].mark}"] = f"{broken[0]}{others}"
    return said


def masked_messages(sums: Iterable[str]) -> dict[str, str]:
    """Return what is said of sums that are seen to hold sentinels: key -> the message."""
    return {key: f"{key} {_MASKED}" for key in sorted(sums)}


@dataclass(slots=True)
class _Reading:
    """Numbers of one batch on their way from an accelerator."""

    keys: tuple[str, ...]
    numbers: Tensor
    event: Any = None


@final
@dataclass(slots=True)
class RangeWatch:
    """Watch over the ranges of many batches: it compares each batch with what was seen before.

    An accelerator is not waited for: what it found is known one batch later.

    Args:
        sums: Activations that sums put out, or they alone read: a sum stays in floating point once one of its holds
            sentinels.
    """

    sums: frozenset[str] = frozenset()
    _readings: list[_Reading] = field(default_factory=list)

    def judge(self, keys: Sequence[str], batch: tuple[Tensor, Tensor, Tensor], past: tuple[Tensor, Tensor]) -> Tensor:
        """Compare a batch's ranges with those of the past, and keep what is to be told.

        Args:
            keys: Names of the activations.
            batch: Their smallest values, largest values and marks, each ``[N]``; infinite ends mark what is unseen.
            past: The smallest and the largest values before, ``[N]`` each.

        Returns:
            Which of them hold sentinels in a sum, ``[N]``: the batch does not count for their ranges.
        """
        low, high, marks = batch
        size, before = (torch.maximum(low.abs(), high.abs()) for low, high in ((low, high), past))
        has_grown = size.isfinite() & before.isfinite() & (size >= GROWTH * before) & (size >= LEAST_GROWN)
        of_sums = torch.tensor([key in self.sums for key in keys], dtype=torch.bool).to(low.device, non_blocking=True)
        is_masked = of_sums & ((has_grown & (size >= LEAST_SENTINEL)) | (marks == INFINITE))
        numbers = torch.stack([low, high, marks, has_grown.float(), is_masked.float()])
        self._keep(tuple(keys), numbers)
        return is_masked

    def take(self, *, waits: bool) -> list[Finding]:
        """Return what was found since the last call; on an accelerator, without the last batch unless it ``waits``."""
        is_late = bool(self._readings) and self._readings[-1].event is not None and not waits
        known, self._readings = (self._readings[:-1], self._readings[-1:]) if is_late else (self._readings, [])
        return [finding for reading in known for finding in _findings(reading)]

    def discard(self) -> None:
        """Forget what was found."""
        self._readings = []

    def _keep(self, keys: tuple[str, ...], numbers: Tensor) -> None:
        if numbers.device.type != "cuda":
            self._readings.append(_Reading(keys, numbers.cpu()))
            return
        here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        here.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it bare
        event.record()
        self._readings.append(_Reading(keys, here, event))


def _findings(reading: _Reading) -> list[Finding]:
    if reading.event is not None:
        reading.event.synchronize()
    found = (reading.numbers[2:] != 0).any(0)
    if not bool(found.any()):
        return []
    rows: list[list[float]] = reading.numbers.T.tolist()
    return [
        Finding(key, row[0], row[1], mark=row[2], is_masked=bool(row[4]))
        for key, row, is_told in zip(reading.keys, rows, found.tolist(), strict=True)
        if is_told
    ]
