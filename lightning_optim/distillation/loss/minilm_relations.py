"""Self-attention relations (MiniLMv2)."""

# B samples, P positions, C channels, R relation heads

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import divergence, reduce_positions
from lightning_optim.distillation.loss.base import Context
from lightning_optim.distillation.loss.feature import FeatureLoss
from lightning_optim.distillation.loss.layout import channels_last, check_positions, full_precision
from lightning_optim.distillation.loss.output import call_mask
from lightning_optim.distillation.observation import Observation
from lightning_optim.surgery.precision import at_least_float32


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class MiniLMRelations(FeatureLoss):
    """Self-attention relations (MiniLMv2): tokens attend to tokens as they do in the teacher, head for head.

    Queries of all tokens (or keys, or values, or hidden states) are split into ``relation_heads``, whatever number of
    attention heads the network has. In each, ``softmax(A @ A.T / sqrt(width of the head))`` says how the tokens relate;
    the loss is the divergence of the student's relations from the teacher's, in the mean over heads, samples and tokens
    (Wang et al., 2020; arXiv:2012.15828, section 3.1).

    Nothing is learned, and the networks need not have as many channels or heads. Features are tokens ``[B, T, C]``, as
    many in both; positions of maps count as tokens.

    Use it for transformers, on the projections of queries, keys and values of one layer each: the student's last, and
    one from the upper middle of a large teacher.

    Measured: MiniLM-L6 into three of its layers, six epochs of 20,000 glosses. With attention and relations beside the
    last layer's hint, the rank correlation with the teacher's similarities of sentences is 0.857, with the hint alone
    0.863 in seven tenths of the time, each at the best of five settings; one seed
    (``benchmarks.distillation_language``).

    Args:
        student: Places in the student, such as ``["net.layer.2.q", "net.layer.2.k", "net.layer.2.v"]``; see
            ``FeatureLoss``.
        teacher: Places in the teacher, as many.
        relation_heads: Number of heads that the relations have; it divides the channels of both.
        mask: Keyword argument of the network's call that marks tokens that are no padding, such as
            ``"attention_mask"``; ``None``: all count.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> loss = MiniLMRelations(student="net.q", relation_heads=2)
        >>> float(loss.compare(torch.zeros(1, 3, 4), torch.zeros(1, 3, 6), None))
        0.0
    """

    relation_heads: int = 12
    mask: str | None = None

    def __post_init__(self) -> None:
        FeatureLoss.__post_init__(self)
        if self.relation_heads < 1:
            raise ValueError(f"relation_heads must be at least 1, got {self.relation_heads}")

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        mask = None if self.mask is None else call_mask(student, self.mask)
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([self._divergence(mine, theirs, mask) for mine, theirs in pairs]).sum()

    @override
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        return self._divergence(student, teacher, None)

    def _divergence(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        mine, theirs = channels_last(student), channels_last(teacher)
        check_positions(mine, theirs, self)
        if mask is not None and mask.shape != mine.shape[:2]:
            raise ValueError(f"the mask has shape {list(mask.shape)}, but the tokens {list(mine.shape[:2])}")
        with full_precision(student):
            terms = divergence(self._relations(theirs, mask), self._relations(mine, mask))  # [B, R, P]
        return reduce_positions(terms, "mean", None if mask is None else mask[:, None].expand(terms.shape))

    def _relations(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Logarithms of the relations, ``[B, R, P, P]``."""
        if tokens.shape[-1] % self.relation_heads:
            raise ValueError(
                f"relation_heads={self.relation_heads} does not divide the {tokens.shape[-1]} channels of a place: set "
                "it to a number that divides those of student and teacher"
            )
        heads = at_least_float32(tokens).reshape(*tokens.shape[:2], self.relation_heads, -1).transpose(1, 2)
        scores: Tensor = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
        if mask is not None:  # the lowest number and not -inf, of which a sample that is all padding would make NaN
            scores = scores.masked_fill(~mask[:, None, None].to(scores.device), torch.finfo(scores.dtype).min)
        return scores.log_softmax(-1)
