"""Attention-map transfer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import unit_vectors
from lightning_optim.distillation.loss.feature import FeatureLoss
from lightning_optim.distillation.loss.layout import channel_axis, channels_last, check_positions, pool_to
from lightning_optim.surgery.precision import at_least_float32


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMap(FeatureLoss):
    """Attention-map transfer: where the student's features are large, the teacher's are.

    ``1/2 * sum_j (Q_s[j] - Q_t[j]) ** 2`` in the mean over samples, with ``Q = m / |m|`` and ``m[j]`` the mean over
    channels of ``|features[j]| ** p`` at position ``j`` (Zagoruyko and Komodakis, 2017; arXiv:1612.03928, equation 2,
    with the square of the norm as in the authors' code, which is smooth where both agree).

    Nothing is learned: channels are averaged, so the networks need not have equally many. Maps ``[B, C, H, W]`` of
    another size are brought to the teacher's by adaptive average pooling; tokens ``[B, T, C]`` must be as many.

    Use it for convolutional networks between stages, beside soft targets; the weight is about 10 to 100. For the
    attention of transformers there are losses of their own.

    Measured: beside the labels it closed 33 % (± 27) of the gap of 1.0 points between a residual net and one of nine
    times its computation at the smallest of the weights that were tried (10,000 images of Fashion-MNIST, three seeds,
    ``benchmarks.distillation_accuracy``).

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.
        p: Power of the features, at least 1; more of it looks at the largest alone.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
        >>> float(AttentionMap(student="net.layer3").compare(student, teacher, None))  # they look elsewhere
        1.0
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        FeatureLoss.__post_init__(self)
        if not 1.0 <= self.p < math.inf:
            raise ValueError(f"p must be a number of at least 1, got {self.p}")

    @override
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        theirs = self._map(teacher)
        mine = pool_to(theirs, self._map(student))
        check_positions(channels_last(mine), channels_last(theirs), self)
        difference = unit_vectors(mine.flatten(1)) - unit_vectors(theirs.flatten(1))
        return 0.5 * (difference**2).sum(1).mean()

    def _map(self, features: Tensor) -> Tensor:
        return (at_least_float32(features).abs() ** self.p).mean(channel_axis(features), keepdim=True)
