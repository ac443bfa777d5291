"""Layouts of features: ``[B, C]``, tokens ``[B, T, C]`` and maps ``[B, C, H, W]``, also of one or three axes more."""

# B samples, C channels, P positions (tokens, or pixels of a map)

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_optim.errors import SampleError
from lightning_optim.surgery.precision import at_least_float32


def channel_axis(features: Tensor) -> int:
    """Axis of the channels: the last of ``[B, C]`` and ``[B, T, C]``, the second of maps."""
    return -1 if features.ndim <= 3 else 1


def channels_last(features: Tensor) -> Tensor:
    """Features as ``[B, P, C]`` with one position for ``[B, C]``."""
    last = features.movedim(channel_axis(features), -1)
    return last.flatten(1, -2) if last.ndim > 2 else last.unsqueeze(1)


def sample_vectors(features: Tensor) -> Tensor:
    """One vector of channels a sample, ``[B, C]`` in at least float32: the mean over positions."""
    return at_least_float32(channels_last(features)).mean(1)


def pool_to(teacher: Tensor, student: Tensor) -> Tensor:
    """Bring maps of the student to the teacher's size by adaptive average pooling; other features stay as they are."""
    if student.ndim == teacher.ndim in (4, 5) and student.shape[2:] != teacher.shape[2:]:
        pool = F.adaptive_avg_pool2d if student.ndim == 4 else F.adaptive_avg_pool3d
        return pool(student, teacher.shape[2:])  # type: ignore[arg-type]  # two or three sizes, as it needs
    return student


def at_size_of(teacher: Tensor, student: Tensor) -> Tensor:
    """Bring maps of the student to the teacher's size.

    Raises:
        ValueError: If they still differ, naming what would bridge it.
    """
    student = pool_to(teacher, student)
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's features have shape {list(student.shape)}, the teacher's {list(teacher.shape)}: choose "
            "places of the same kind and length, or projection='auto' where only the channels differ"
        )
    return student


def check_same_positions(student: Tensor, teacher: Tensor, loss: object) -> None:
    """Refuse features ``[B, P, C]`` of which the networks have not equally many samples or positions.

    Raises:
        ValueError: If they are such.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{_name(loss)} compares position by position, but the student has {student.shape[1]} of them in "
            f"{student.shape[0]} samples and the teacher {teacher.shape[1]} in {teacher.shape[0]}: choose places of "
            "the same kind and length"
        )


def check_positions(student: Tensor, teacher: Tensor, loss: object) -> None:
    """Refuse features ``[B, P, C]`` as ``check_same_positions`` does, and those with a single position.

    Raises:
        ValueError: If they are such.
    """
    check_same_positions(student, teacher, loss)
    if student.shape[1] < 2:
        raise ValueError(
            f"{_name(loss)} needs features with several positions, tokens [B, T, C] or maps [B, C, H, W], and got one "
            "position a sample: choose a place before they are pooled"
        )


def check_samples(samples: Sized, needed: int, loss: object) -> None:
    """Refuse a batch of too few samples for a loss that compares them with each other.

    Raises:
        SampleError: If there are fewer than ``needed``.
    """
    if len(samples) < needed:
        raise SampleError(
            f"{_name(loss)} compares samples with each other and needs at least {needed} of them in a batch, got "
            f"{len(samples)}: take larger batches, and drop_last=True where the last one is smaller"
        )


def full_precision(features: Tensor) -> torch.autocast:
    """Keep autocast from computing what follows in half precision."""
    return torch.autocast(features.device.type, enabled=False)


def _name(loss: object) -> str:
    return type(loss).__name__
