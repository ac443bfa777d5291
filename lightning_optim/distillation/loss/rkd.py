"""Relational knowledge distillation (RKD)."""

# B samples, C channels

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import unit_vectors
from lightning_optim.distillation.loss.feature import FeatureLoss
from lightning_optim.distillation.loss.layout import check_samples, full_precision, sample_vectors


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class RKD(FeatureLoss):
    """Relational knowledge distillation (RKD): samples lie to each other as they do for the teacher.

    ``distance_weight * mean h(d_s(i, j), d_t(i, j)) + angle_weight * mean h(a_s(i, j, k), a_t(i, j, k))`` over pairs
    and triplets of distinct samples (Park et al., 2019; arXiv:1904.05068, section 3.2, with the mean in place of the
    sum). ``d`` is the distance divided by the mean distance of the batch, ``a`` the cosine of the angle at ``j``,
    and ``h`` the Huber loss with ``delta=1``.

    One vector a sample is compared: ``[B, C]`` as it is, the mean over positions of tokens and maps. Nothing is
    learned, and the networks need not have equally many channels.

    Use it for embeddings and metric learning, and for classifiers on what their head receives (``"net.fc:input"``).

    Measured: beside the labels it closed 15 % (± 29) of the gap of 1.0 points between a residual net and one of nine
    times its computation at the smallest of the weights that were tried (10,000 images of Fashion-MNIST, three seeds,
    ``benchmarks.distillation_accuracy``).

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.
        distance_weight: Weight of the distances, at least 0; these need two samples in a batch.
        angle_weight: Weight of the angles, at least 0; these need three samples, and time and memory grow with the cube
            of their number.

    Raises:
        ValueError: If a setting is out of range, or both weights are 0.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> round(float(RKD(student="net.fc:input").compare(3.0 * square + 1.0, square, None)), 4)  # size is no matter
        0.0
    """

    distance_weight: float = 1.0
    angle_weight: float = 2.0

    def __post_init__(self) -> None:
        FeatureLoss.__post_init__(self)
        for setting, value in (("distance_weight", self.distance_weight), ("angle_weight", self.angle_weight)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{setting} must be a number of at least 0, got {value}")
        if self.distance_weight == self.angle_weight == 0.0:
            raise ValueError("distance_weight and angle_weight are both 0, so nothing would be compared: raise one")

    @override
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        check_samples(student, 3 if self.angle_weight else 2, self)
        with full_precision(student):
            mine, theirs = (_differences(sample_vectors(each)) for each in (student, teacher))
            loss = self.distance_weight * F.smooth_l1_loss(_distances(mine), _distances(theirs))
            if self.angle_weight:
                loss = loss + self.angle_weight * _angle_loss(mine, theirs)
        return loss


def _differences(vectors: Tensor) -> Tensor:
    """What leads from each sample to each other one, ``[B, B, C]``."""
    return vectors[None] - vectors[:, None]


def _distances(differences: Tensor) -> Tensor:
    """Distances of pairs of distinct samples, of mean 1; all 0 where the samples are one."""
    is_pair = ~torch.eye(len(differences), dtype=torch.bool, device=differences.device)
    distances: Tensor = torch.linalg.vector_norm(differences[is_pair], dim=-1)
    mean = distances.mean()
    return distances / torch.where(mean > 0.0, mean, 1.0)


def _angle_loss(mine: Tensor, theirs: Tensor) -> Tensor:
    """Mean over the angles of triplets of distinct samples."""
    cosines, others = map(_cosines, (mine, theirs))
    size = len(mine)
    return F.smooth_l1_loss(cosines, others, reduction="sum") / (size * (size - 1) * (size - 2))


def _cosines(differences: Tensor) -> Tensor:
    """Cosine of the angle at sample ``j`` between samples ``i`` and ``k``, at ``[j, i, k]``; 0 where two are the same.

    Zeros of both networks cost nothing: to pick the others out takes several times as long as all else.
    """
    directions = unit_vectors(differences)  # zero from a sample to itself
    cosines = directions @ directions.transpose(1, 2)
    is_same = torch.eye(len(differences), dtype=torch.bool, device=differences.device)
    return cosines.masked_fill(is_same, 0.0)
