"""Probabilistic knowledge transfer (PKT)."""

# B samples

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import unit_vectors
from lightning_optim.distillation.loss.feature import FeatureLoss
from lightning_optim.distillation.loss.layout import check_samples, full_precision, sample_vectors

_SMALLEST = 1e-7  # of a similarity, so that opposite vectors have a logarithm


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class PKT(FeatureLoss):
    """Probabilistic knowledge transfer (PKT): each sample finds the others as similar as it does for the teacher.

    ``sum_j q(j | i) * log(q(j | i) / p(j | i))`` over the other samples ``j``, in the mean over samples ``i`` (Passalis
    and Tefas, 2018; arXiv:1803.10837, section 3). ``p(j | i)`` is the student's similarity ``(1 + cos) / 2`` of
    the two samples, divided by the sum over the other samples, and ``q`` is the teacher's.

    One vector a sample is compared: ``[B, C]`` as it is, the mean over positions of tokens and maps. Nothing is
    learned, and the networks need not have equally many channels.

    Use it for embeddings and retrieval. The probabilities of many samples differ little, so the weight is large: a
    few hundred are usual.

    Measured: beside the labels it closed 59 % (± 16) of the gap of 1.0 points between a residual net and one of nine
    times its computation, the most of all losses here (10,000 images of Fashion-MNIST, three seeds,
    ``benchmarks.distillation_accuracy``).

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.eye(3)
        >>> round(float(PKT(student="net.fc:input").compare(student, teacher, None)), 4)
        0.0393
    """

    @override
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        check_samples(student, 3, self)  # of two samples, each has the other with probability 1
        with full_precision(student):
            mine, theirs = (_probabilities(sample_vectors(each)) for each in (student, teacher))
            return (theirs * (theirs / mine).log()).sum(1).mean()


def _probabilities(vectors: Tensor) -> Tensor:
    """Probability of each other sample, ``[B, B - 1]``."""
    directions = unit_vectors(vectors)
    similarities = ((directions @ directions.T + 1.0) / 2.0).clamp(min=_SMALLEST)
    size = len(similarities)
    others = similarities.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)  # without the diagonal
    return others / others.sum(1, keepdim=True)
