"""Variational information distillation (VID)."""

# B samples, P positions, C channels

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.loss.layout import (
    channel_axis,
    channels_last,
    check_same_positions,
    full_precision,
    pool_to,
)
from lightning_optim.distillation.loss.learning import LearningLoss
from lightning_optim.surgery.precision import at_least_float32

_SMALLEST = 1e-5  # of a variance


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class VID(LearningLoss):
    """Variational information distillation (VID): the student's features tell as much as they can about the teacher's.

    ``log(sigma_c) + (teacher - mu(student)) ** 2 / (2 * sigma_c ** 2)`` in the mean over samples, positions and
    channels (Ahn et al., 2019; arXiv:1904.05835, section 2.1). The mean ``mu`` is a learned net, three linear maps of
    the channels with ReLU between them, and ``sigma_c ** 2 = softplus(alpha_c) + 1e-5`` a learned variance of each
    channel of the teacher: what the student cannot predict weighs little. The loss may fall below 0.

    Features are ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]``; maps of another size are brought to the teacher's by
    adaptive average pooling.

    Use it in place of a hint where the student cannot follow all of the teacher's channels.

    Measured: beside the labels it closed 6 % (± 12) of the gap of 1.0 points between a residual net and one of nine
    times its computation (10,000 images of Fashion-MNIST, three seeds, ``benchmarks.distillation_accuracy``).

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.
        initial_variance: Variance of each channel at first, above 1e-5.
        learning_rate: Of the AdamW of mean and variances, above 0.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> loss, student, teacher = VID(student="net.layer3"), torch.zeros(2, 3), torch.zeros(2, 4)
        >>> predictor = loss.learn(student, teacher)
        >>> [tuple(parameter.shape) for parameter in predictor.parameters()][:3]
        [(4,), (4, 3), (4,)]
    """

    initial_variance: float = 5.0

    def __post_init__(self) -> None:
        LearningLoss.__post_init__(self)
        if not _SMALLEST < self.initial_variance < math.inf:
            raise ValueError(f"initial_variance must be a number above {_SMALLEST}, got {self.initial_variance}")

    @override
    def learn(self, student: Tensor, teacher: Tensor) -> nn.Module:
        mine, theirs = (each.shape[channel_axis(each)] for each in (student, teacher))
        return _Predictor(mine, theirs, self.initial_variance)

    @override
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        assert isinstance(learned, _Predictor)
        mine, theirs = (at_least_float32(channels_last(each)) for each in (pool_to(teacher, student), teacher))
        check_same_positions(mine, theirs, self)
        with full_precision(student):
            mean: Tensor = learned(mine)
            variance = learned.variance()
            return 0.5 * (variance.log() + (theirs - mean) ** 2 / variance).mean()


@final
class _Predictor(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float) -> None:
        super().__init__()
        raw = initial_variance - _SMALLEST
        self.alpha = nn.Parameter(torch.full((teacher_channels,), raw + math.log(-math.expm1(-raw))))
        widths = [student_channels, teacher_channels, teacher_channels, teacher_channels]
        first, second, third = (nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def variance(self) -> Tensor:
        return F.softplus(self.alpha) + _SMALLEST

    @override
    def forward(self, features: Tensor) -> Tensor:
        mean: Tensor = self.mean(features)
        return mean
