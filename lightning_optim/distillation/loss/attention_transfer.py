"""Attention-transfer loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.attention import Attention
from lightning_optim.distillation.functional import Reduction, attention_transfer_loss, check_reduction
from lightning_optim.distillation.kernel.attention import (
    QueriesAndKeys,
    attention_transfer_loss_from_queries,
    check_attention,
    sees_no_key,
)
from lightning_optim.distillation.loss.base import Context, Loss
from lightning_optim.distillation.loss.feature import place_texts
from lightning_optim.distillation.loss.output import call_mask
from lightning_optim.distillation.observation import Observation
from lightning_optim.distillation.place import PlacePair, Side, pair_places
from lightning_optim.surgery.precision import at_least_float32


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTransfer(Loss):
    """Attention-transfer loss: where the student looks approaches where the teacher looks.

    ``sum over pairs of sum_i sum_j KL(A_i(j) || S_i(j))``, with ``A`` the teacher's and ``S`` the student's attention
    of query ``i`` over the keys ``j``, in the mean over queries and heads (``reduction="sum"``: the sum).

    The attention of ``nn.MultiheadAttention`` is seen, and that of any code that calls
    ``scaled_dot_product_attention``: causal, masked, with fewer key heads than query heads, with transformers'
    ``attn_implementation="sdpa"``. It is computed as before, by the same kernel; the loss takes queries and keys, and
    makes one head's attention at a time. Dropout of attention is no part of it.

    Use it for transformers, from layers spread over the teacher (every second, or the last) to those of the student;
    with as many heads one by one, else by their mean.

    Measured: MiniLM-L6 into three of its layers, six epochs of 20,000 glosses. With attention and relations beside the
    last layer's hint, the rank correlation with the teacher's similarities of sentences is 0.857, with the hint alone
    0.863 in seven tenths of the time, each at the best of five settings; one seed
    (``benchmarks.distillation_language``).

    Args:
        student: Modules of the student that compute one attention each, by names in the LightningModule; a ``*`` stands
            within one part of a dotted name.
        teacher: Those of the teacher, by names in the teacher's network, as many. ``None`` takes the student's, without
            the name of the network in the LightningModule.
        heads: ``"each"`` compares head with head; ``"mean"`` the mean over heads, for which all of them are held.
        reduction: ``"mean"`` over heads and valid queries, or ``"sum"``.
        mask: Keyword argument of the network's call that marks valid queries, ``[B, Q]``, such as ``"attention_mask"``.

    Example:
        >>> loss = AttentionTransfer(student="net.layers.*.self_attn", heads="mean")
        >>> logits = torch.tensor([[[[0.0, 3.0]]]])
        >>> round(float(loss.compare(torch.zeros(1, 1, 1, 2), logits, None)), 4)
        0.5023
    """

    student: str | Sequence[str]
    teacher: str | Sequence[str] | None = None
    heads: Literal["each", "mean"] = "each"
    reduction: Reduction = "mean"
    mask: str | None = None

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        if not place_texts(self.student) or (self.teacher is not None and not place_texts(self.teacher)):
            raise ValueError("AttentionTransfer needs at least one module of the student and of the teacher")
        both = [*place_texts(self.student), *place_texts(self.teacher or [])]
        if any(":" in text for text in both):
            raise ValueError(f"AttentionTransfer takes names of modules, without a part behind a colon: got {both}")

    @override
    def pairs(self, student: Side, teacher: Side) -> tuple[PlacePair, ...]:
        mine, theirs = (
            None if places is None else [f"{text}:attention" for text in place_texts(places)]
            for places in (self.student, self.teacher)
        )
        return pair_places(student, teacher, mine or [], theirs)

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        mask = None if self.mask is None else call_mask(student, self.mask)
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([self.compare(*pair, mask) for pair in pairs]).sum()

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """Return a scalar for one pair of attentions.

        Args:
            student: What the student's is made of.
            teacher: What the teacher's is made of.
            mask: Which queries are valid, ``[B, Q]``; ``None``: all.
        """
        if self.heads == "each" and isinstance(student, QueriesAndKeys) and isinstance(teacher, QueriesAndKeys):
            return attention_transfer_loss_from_queries(student, teacher, reduction=self.reduction, mask=mask)
        mine, theirs = (_probabilities(each) for each in (student, teacher))
        if self.heads == "mean":
            mine, theirs = mine.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
        check_attention(mine.shape, theirs.shape)
        valid = None if mask is None else mask[:, None].expand(mine.shape[:3])
        return attention_transfer_loss(mine, theirs, reduction=self.reduction, mask=valid)


def _probabilities(attention: Attention) -> Tensor:
    logits = attention.all_logits() if isinstance(attention, QueriesAndKeys) else attention
    is_blind = sees_no_key(logits).unsqueeze(-1)  # all of its logits are -inf, whose softmax is no number
    return at_least_float32(logits).masked_fill(is_blind, 0.0).softmax(-1).masked_fill(is_blind, 0.0)
