"""Attention-transfer loss from queries and keys, without attention of all queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from lightning_optim.distillation.functional import Reduction, check_reduction
from lightning_optim.distillation.kernel.divergence import (
    divergences,
    row_weights,
    weighted_,
)
from lightning_optim.surgery.precision import at_least_float32, computing_dtype, wide_in_range


@final
@dataclass(frozen=True, slots=True)
class QueriesAndKeys:
    """What an attention is made of: ``softmax(scale * query @ key.T + bias)`` over the keys that may be seen.

    Args:
        query: ``[B, H, Q, D]``.
        key: ``[B, G, K, D]``, where ``G`` divides ``H``: each key head serves as many query heads, in their order.
        mask: Boolean (which keys may be seen) or a number to add, broadcast to ``[B, H, Q, K]``; ``None``: all, as is.
        is_causal: Whether a query sees only keys up to its own place.
        scale: Factor of the products; ``None`` is ``1 / sqrt(D)``.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the attention: samples, heads, queries, keys."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[2]

    @property
    def factor(self) -> float:
        """Factor of the products."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def detached(self) -> QueriesAndKeys:
        """The same without gradient."""
        return QueriesAndKeys(self.query.detach(), self.key.detach(), self.mask, self.is_causal, self.scale)

    def key_head(self, head: int) -> int:
        """Which key head serves a query head."""
        return head // (self.query.shape[1] // self.key.shape[1])

    def all_logits(self) -> Tensor:
        """Attention of all heads before the softmax, ``[B, H, Q, K]``, differentiable in queries and keys.

        Products are in the number format of queries and keys, all that follows in at least float32.
        """
        key = self.key.repeat_interleave(self.shape[1] // self.key.shape[1], 1)
        with torch.autocast(self.query.device.type, enabled=False):
            logits = at_least_float32(self.query @ key.transpose(-2, -1)) * self.factor
        if self.is_causal:
            hidden = torch.ones(self.shape[2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(hidden, float("-inf"))
        if self.mask is None:
            return logits
        return logits.masked_fill(~self.mask, float("-inf")) if self.mask.dtype == torch.bool else logits + self.mask

    def logits(self, sample: int, head: int, dtype: torch.dtype) -> Tensor:
        """Attention of one head before the softmax, ``[Q, K]``, ``-inf`` where nothing may be seen; a new tensor."""
        query, key = self.query[sample, head], self.key[sample, self.key_head(head)]
        logits = (query @ key.T).to(dtype).mul_(self.factor)
        if self.is_causal:
            hidden = torch.ones(logits.shape, dtype=torch.bool, device=logits.device).triu_(1)
            logits.masked_fill_(hidden, float("-inf"))
        if self.mask is not None:
            mask = self.mask.expand(self.shape)[sample, head]
            logits = logits.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else logits.add_(mask)
        return logits


def sees_no_key(logits: Tensor) -> Tensor:
    """Which queries see no key, of logits ``[..., Q, K]``; one whose logits are NaN is broken, and sees some."""
    return logits.amax(-1) == float("-inf")


def attention_transfer_loss_from_queries(
    student: QueriesAndKeys, teacher: QueriesAndKeys, *, reduction: Reduction = "mean", mask: Tensor | None = None
) -> Tensor:
    """Attention-transfer loss from queries and keys: ``sum_i sum_j KL(A_i(j) || S_i(j))``.

    The value is that of ``attention_transfer_loss`` on the two softmaxes. They are made for one head at a time, with
    their part of the gradient, so that ``[B, H, Q, K]`` is never held. Queries that see no key add nothing.

    Args:
        student: Queries and keys of the student.
        teacher: Those of the teacher, with as many heads, queries and keys; no gradient flows into them.
        reduction: ``"sum"`` over all queries, or ``"mean"`` over the valid ones of all heads.
        mask: Which queries are valid; boolean, ``[B, Q]``. ``None``: all.

    Returns:
        A scalar in at least float32. Its gradient cannot be differentiated again.

    Raises:
        ValueError: If heads, queries or keys are not as many, or ``reduction`` is unknown.

    Example:
        >>> student = QueriesAndKeys(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1))
        >>> teacher = QueriesAndKeys(torch.ones(1, 1, 1, 1), torch.tensor([[[[0.0], [3.0]]]]))
        >>> round(attention_transfer_loss_from_queries(student, teacher).item(), 4)
        0.5023
    """
    check_reduction(reduction)
    check_attention(student.shape, teacher.shape)
    settings = (student, teacher.detached(), reduction, mask)
    inputs = wide_in_range(student.query), wide_in_range(student.key)
    with torch.autocast(student.query.device.type, enabled=False):
        loss: Tensor = _AttentionTransfer.apply(*inputs, *settings)  # type: ignore[no-untyped-call]
    return loss


def check_attention(student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuse attentions of two networks that do not agree.

    Args:
        student: Samples, heads, queries and keys of the student.
        teacher: Those of the teacher.

    Raises:
        ValueError: If they differ.
    """
    if tuple(student) != tuple(teacher):
        raise ValueError(
            "the student's attention has {} samples, {} heads, {} queries and {} keys, ".format(*student)
            + "the teacher's {}, {}, {} and {}: choose layers that agree; ".format(*teacher)
            + "where only heads differ, compare their mean or their relations"
        )


class _AttentionTransfer(torch.autograd.Function):
    @staticmethod
    @override
    def forward(  # what autograd hands over stands in one row
        ctx: Any,
        query: Tensor,
        key: Tensor,
        student: QueriesAndKeys,
        teacher: QueriesAndKeys,
        reduction: str,
        mask: Tensor | None,
    ) -> Tensor:
        dtype, (batch, heads, queries, _) = computing_dtype(query.dtype), query.shape
        total = query.new_zeros((), dtype=dtype)
        every = None if mask is None else mask[:, None].expand(batch, heads, queries)
        weights = row_weights(batch * heads * queries, every, reduction, total).view(batch, heads, queries)
        to_query, to_key = torch.empty_like(query), torch.zeros_like(key)
        for sample in range(batch):
            for head in range(heads):
                logits, gradient = (each.logits(sample, head, dtype) for each in (student, teacher))
                counts = weights[sample, head]
                if student.mask is not None or teacher.mask is not None:
                    counts = counts.masked_fill(sees_no_key(logits) | sees_no_key(gradient), 0.0)
                for block, rows, difference in divergences(logits, gradient):
                    weight = counts[block]
                    total += torch.where(weight > 0, rows, 0.0).dot(weight)
                    gradient[block] = weighted_(difference, weight, student.factor)
                gradient = gradient.to(query.dtype)
                torch.mm(gradient, key[sample, student.key_head(head)], out=to_query[sample, head])
                to_key[sample, student.key_head(head)].addmm_(gradient.T, query[sample, head])
        ctx.save_for_backward(to_query, to_key)
        return total

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        return *(each * factor.to(each.dtype) for each in ctx.saved_tensors), None, None, None, None
