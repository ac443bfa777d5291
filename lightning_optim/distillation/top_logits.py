"""Likeliest classes of a teacher, with all others as one: enough for soft targets, at a fraction of the bytes."""

# C classes, k likeliest of them

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.distillation.functional import log_buckets
from lightning_optim.surgery.precision import at_least_float32


@final
@dataclass(frozen=True, slots=True)
class TopLogits:
    """Likeliest classes: their logits, and how likely all other classes are together.

    The probability of the others cannot be computed for another temperature, so it is held for each that is needed.

    Args:
        num_classes: C.
        indices: The likeliest classes, the first one first, ``[..., k]``.
        logits: Their logits less the largest, ``[..., k]``.
        rest: At each temperature, the logarithm of the probability of all other classes, ``[...]``.

    Example:
        >>> top = TopLogits.of(torch.tensor([[0.0, 2.0, 1.0, 0.0]]), 2, [1.0])
        >>> top.indices, top.logits, top.log_probabilities(1.0).exp()
        (tensor([[1, 2]]), tensor([[ 0., -1.]]), tensor([[0.6103, 0.2245, 0.1652]]))
    """

    num_classes: int
    indices: Tensor
    logits: Tensor
    rest: Mapping[float, Tensor]

    @classmethod
    def of(cls, logits: Tensor, k: int, temperatures: Iterable[float]) -> TopLogits:
        """Find the likeliest classes.

        Args:
            logits: All logits, ``[..., C]``.
            k: How many to keep, fewer than C.
            temperatures: At which the others' probability is needed.
        """
        logits = at_least_float32(logits)
        top, indices = logits.topk(k)
        rest = {each: log_buckets((logits / each).log_softmax(-1), indices)[..., -1] for each in temperatures}
        return cls(logits.shape[-1], indices, top - top[..., :1], rest)

    def log_probabilities(self, temperature: float) -> Tensor:
        """Logarithms of the probabilities of the k classes and, last, of all others together, ``[..., k + 1]``.

        Args:
            temperature: Divides the logits; one of those that are held.
        """
        rest = at_least_float32(self.rest[temperature]).unsqueeze(-1)
        share = (-torch.expm1(rest)).log()  # of the k together
        return torch.cat([(at_least_float32(self.logits) / temperature).log_softmax(-1) + share, rest], -1)


def top_logits_at(output: Any, key: str | int | None) -> TopLogits | None:
    """The likeliest classes that stand at a key of a teacher's output; ``None`` if all of its logits do."""
    found = output.get(key) if isinstance(output, Mapping) else output
    return found if isinstance(found, TopLogits) else None
