"""Comparison of one output of an exported model with that of the trained one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.simulation.sentinels import sentinel_bound
from lightning_optim.surgery.containers import find_tensors

_SMALLEST = 1e-6  # difference from an output of zeros that the order of sums may make


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """Parity of one output: how closely the exported model computes it.

    Args:
        name: Where the output is in what the model returns, such as ``"output['logits']"``.
        relative_error: Norm of the differences by that of the trained model's values; of integers and booleans, the
            share that differs. Sentinels, such as ``-inf``, count where one side alone has them.
        max_abs_error: Largest difference of any value.
        exact_fraction: Share of values that are equal bit for bit, in ``[0, 1]``.
        top1_agreement: Share of positions with the same class, in ``[0, 1]``; ``None`` if the output has no classes.
        worst: Index of the largest difference, the sample first.
    """

    name: str
    relative_error: float
    max_abs_error: float
    exact_fraction: float
    top1_agreement: float | None
    worst: tuple[int, ...]


@final
class OutputComparison:
    """Comparison of one output, batch by batch.

    Args:
        name: Where the output is in what the model returns.
        tie: Part of a row's range by which two classes that count as the same may differ.

    Example:
        >>> comparison = OutputComparison("output")
        >>> comparison.add(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]]))
        >>> comparison.result().relative_error, comparison.result().worst
        (0.1, (0, 1))
    """

    def __init__(self, name: str, tie: float = 0.0) -> None:
        self._name, self._tie = name, tie
        self._noise = self._signal = self._largest = 0.0
        self._worst: tuple[int, ...] = ()
        self._has_labels = False
        self._num_values = self._num_equal = self._num_rows = 0
        self._agreed: dict[int, list[int]] = {}

    def add(self, trained: Tensor, found: Tensor) -> None:
        """Take in the output of one batch, as both models compute it."""
        equal = trained == found
        if trained.numel():
            self._add_differences(trained, found, equal)
        self._num_values, self._num_equal = self._num_values + equal.numel(), self._num_equal + int(equal.sum())
        self._num_rows += len(trained) if trained.dim() else 1
        for dim in class_dims(trained):
            counts = self._agreed.setdefault(dim, [0, 0])
            same = _same_class(trained, found, dim, self._tie)
            counts[0], counts[1] = counts[0] + int(same.sum()), counts[1] + same.numel()

    def result(self) -> OutputParity:
        """Return what was found in all batches."""
        shares = [agreed / compared for agreed, compared in self._agreed.values() if compared]
        exact = self._num_equal / self._num_values if self._num_values else 1.0
        return OutputParity(
            name=self._name,
            relative_error=self._relative_error(),
            max_abs_error=self._largest,
            exact_fraction=exact,
            top1_agreement=min(shares, default=None),
            worst=self._worst,
        )

    def _relative_error(self) -> float:
        if self._has_labels:
            return 1.0 - self._num_equal / self._num_values
        if not self._noise:
            return 0.0
        if not self._signal:
            return 0.0 if self._largest <= _SMALLEST else math.inf
        if math.isinf(self._noise):
            return math.inf
        return math.sqrt(self._noise / self._signal)

    def _add_differences(self, trained: Tensor, found: Tensor, equal: Tensor) -> None:
        differences = torch.where(equal, 0.0, found.double() - trained.double()).abs()
        if trained.is_floating_point():
            counted = _is_number(trained, found)
            self._noise += float(differences[counted].square().sum())
            self._signal += float(trained[counted].double().square().sum())
        else:  # labels: how far apart two of them are means nothing
            self._has_labels = True
        place = int(differences.argmax())  # that of NaN, if there is one
        largest = float(differences.flatten()[place])
        if not self._worst or not largest <= self._largest:
            index = [int(each) for each in torch.unravel_index(torch.tensor(place), trained.shape)]
            self._largest = largest
            self._worst = (index[0] + self._num_rows, *index[1:]) if index else ()


def class_dims(output: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which an output may hold classes; none if it holds none.

    Real numbers of two dimensions hold them along the second one, ``[B, C]``. With more, they may lie along the second
    one, ``[B, C, height, width]``, or the last, ``[B, T, C]``: both are compared. A dimension of one entry holds none,
    and so does a map of one channel, ``[B, 1, height, width]``.

    Example:
        >>> class_dims(torch.ones(8, 5)), class_dims(torch.ones(8, 1)), class_dims(torch.ones(8, 3, 4, 4))
        ((1,), (), (1, 3))
    """
    is_map_of_one = output.dim() > 3 and output.shape[1] == 1
    if output.dim() < 2 or is_map_of_one or not output.is_floating_point():
        return ()
    return tuple(dim for dim in sorted({1, output.dim() - 1}) if output.shape[dim] > 1)


def named_tensors(output: Any) -> dict[str, Tensor]:
    """Return every tensor of what a model returns, on the CPU, by where it is.

    Example:
        >>> list(named_tensors({"logits": torch.ones(1), "hidden": (torch.ones(1), None)}))
        ["output['logits']", "output['hidden'][0]"]
    """
    return {"output" + "".join(f"[{key!r}]" for key in path): tensor.cpu() for path, tensor in find_tensors(output)}


def num_samples(outputs: Iterable[Tensor]) -> int:
    """Return how many samples one call's outputs are of: the length of the first; 1 if it is a scalar.

    Example:
        >>> num_samples([torch.ones(8, 5), torch.ones(1)])
        8
    """
    first = next(iter(outputs), torch.zeros(0))
    return len(first) if first.dim() else 1


def _is_number(trained: Tensor, found: Tensor) -> Tensor:
    """Where not both outputs hold a sentinel of one sign, whose magnitude would hide all other values."""
    both = _is_sentinel(trained) & _is_sentinel(found) & (trained.sign() == found.sign())
    return ~both


def _is_sentinel(values: Tensor) -> Tensor:
    bound = sentinel_bound(values)
    return torch.zeros_like(values, dtype=torch.bool) if bound is None else values.abs() >= bound


def _same_class(trained: Tensor, found: Tensor, dim: int, tie: float) -> Tensor:
    values = trained.double()
    chosen = values.gather(dim, found.argmax(dim, keepdim=True)).squeeze(dim)
    best = values.amax(dim, keepdim=True)
    lowest, best = torch.where(_is_sentinel(values), best, values).amin(dim), best.squeeze(dim)
    return (found.argmax(dim) == trained.argmax(dim)) | (chosen >= best - tie * (best - lowest))
