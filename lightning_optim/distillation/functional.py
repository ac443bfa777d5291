"""Distillation losses as formulas: tensors in, scalar out.

Axes: B batch, C classes, H heads, Q queries, K keys.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_optim.surgery.precision import at_least_float32

Reduction = Literal["sum", "mean"]


def soft_target_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    reduction: Reduction = "mean",
    class_dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's softened classes from the teacher's (Hinton et al., 2015; arXiv:1503.02531).

    ``temperature ** 2 * sum_i sum_c q_i(c) * log(q_i(c) / p_i(c))`` with ``q`` the teacher's and ``p`` the student's
    softmax of ``logits / temperature``. The square keeps the gradient's size when the temperature changes. Half
    precision is computed in float32. A class that the teacher excludes (a logit of ``-inf``) adds nothing.

    Args:
        student_logits: Logits with the classes along ``class_dim``, for example ``[B, C]``.
        teacher_logits: Logits of the same shape; no gradient flows into them if they need none.
        temperature: Divides both logits; above 0.
        reduction: ``"sum"`` over positions, or ``"mean"`` over the valid ones. Classes are summed in either case.
        class_dim: Axis of the classes.
        mask: Which positions are valid; boolean, shaped as the logits without ``class_dim``. ``None``: all.

    Returns:
        A scalar, at least 0; 0 if no position is valid.

    Raises:
        ValueError: If shapes differ, there are fewer than two classes, or a setting is out of range.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).log_softmax(-1)
        >>> round(float(soft_target_loss(student, teacher)), 4)
        0.5023
    """
    check_temperature(temperature)
    check_logits(student_logits, teacher_logits, class_dim)
    divergences = soft_target_divergences(student_logits, teacher_logits, temperature, class_dim)
    return temperature**2 * reduce_positions(divergences, reduction, mask)


def soft_target_divergences(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, class_dim: int = -1
) -> Tensor:
    """Divergence of each position: ``sum_c q(c) * log(q(c) / p(c))``, without the square of the temperature.

    Args:
        student_logits: Logits with the classes along ``class_dim``.
        teacher_logits: Logits of the same shape.
        temperature: Divides both logits.
        class_dim: Axis of the classes.

    Example:
        >>> soft_target_divergences(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).log_softmax(-1), 1.0)
        tensor([0.5023])
    """
    teacher_log = (at_least_float32(teacher_logits) / temperature).log_softmax(class_dim)
    student_log = (at_least_float32(student_logits) / temperature).log_softmax(class_dim)
    teacher_probabilities = teacher_log.exp()
    terms = teacher_probabilities * (teacher_log - student_log)
    return torch.where(teacher_probabilities > 0, terms, 0.0).sum(class_dim)


def log_buckets(log_probabilities: Tensor, indices: Tensor) -> Tensor:
    """Logarithms of the probabilities of some classes and, last, of all others together, ``[..., k + 1]``.

    Args:
        log_probabilities: Of all classes, ``[..., C]``.
        indices: Some of them, ``[..., k]``.

    Example:
        >>> log_buckets(torch.tensor([0.1, 0.5, 0.4]).log(), torch.tensor([1])).exp()
        tensor([0.5000, 0.5000])
    """
    rest = log_probabilities.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probabilities.gather(-1, indices), rest], -1)


def attention_transfer_loss(
    student_attention: Tensor,
    teacher_attention: Tensor,
    *,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's attention distributions from the teacher's: ``sum_i sum_j KL(A_i(j) || S_i(j))``.

    Args:
        student_attention: Probabilities after the softmax, ``[..., Q, K]``, for example ``[B, H, Q, K]``.
        teacher_attention: Probabilities of the same shape. Where they are 0 (a causal mask), nothing is added.
        reduction: ``"sum"`` over all queries, or ``"mean"`` over the valid ones. Keys are summed in either case.
        mask: Which queries are valid; boolean, shaped as the attention without its last axis. ``None``: all.

    Returns:
        A scalar, at least 0; 0 if no query is valid.

    Raises:
        ValueError: If shapes differ or ``reduction`` is unknown.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
        >>> round(float(attention_transfer_loss(student, teacher)), 4)
        0.6931
    """
    if student_attention.shape != teacher_attention.shape:
        raise ValueError(
            f"the student's attention has shape {list(student_attention.shape)}, the teacher's "
            f"{list(teacher_attention.shape)}: average over heads, or tap layers with the same number of heads and keys"
        )
    teacher = at_least_float32(teacher_attention)
    # Both are replaced where the teacher is 0: 0 * log(0 / 0) has no gradient that is a number.
    is_seen = teacher > 0
    student = torch.where(is_seen, at_least_float32(student_attention), 1.0)
    terms = teacher * (torch.where(is_seen, teacher, 1.0).log() - student.log())
    return reduce_positions(terms.sum(-1), reduction, mask)


def standardize_logits(logits: Tensor, class_dim: int = -1) -> Tensor:
    """Logits of mean 0 and variance 1 over their classes (Sun et al., 2024; arXiv:2403.01427, algorithm 1).

    Equal logits become 0. A class that is excluded (a logit of ``-inf``) stays so, and counts in neither.

    Args:
        logits: Logits with the classes along ``class_dim``.
        class_dim: Axis of the classes.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """
    logits = at_least_float32(logits)
    is_class = ~logits.isneginf()
    num_classes = is_class.sum(class_dim, keepdim=True).clamp(min=1)
    mean = torch.where(is_class, logits, 0.0).sum(class_dim, keepdim=True) / num_classes
    centered = remove_rounding(torch.where(is_class, logits - mean, 0.0), logits.masked_fill(~is_class, 0.0), class_dim)
    variance = (centered**2).sum(class_dim, keepdim=True) / num_classes
    is_constant = variance == 0.0
    scaled = centered * torch.where(is_constant, 1.0, variance).rsqrt()
    return scaled.masked_fill(~is_class, -torch.inf)


def divergence(first: Tensor, second: Tensor, dim: int = -1) -> Tensor:
    """Kullback-Leibler divergence ``sum p * log(p / q)`` along an axis; where ``p`` is 0 nothing is added.

    Args:
        first: Logarithms of ``p``, as from ``log_softmax``.
        second: Logarithms of ``q``.
        dim: The axis.

    Example:
        >>> divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
        tensor(0.1438)
    """
    probabilities = first.exp()
    return (probabilities * torch.where(probabilities > 0, first - second, 0.0)).sum(dim)


def unit_vectors(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors of length 1 in the same directions; a vector of zeros stays so, and has no gradient.

    Args:
        vectors: The vectors.
        dim: Their axis.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # The direction does not depend on the size, so the size is no part of the gradient; squares stay within range.
    size = vectors.detach().abs().amax(dim, keepdim=True)
    is_zero = size == 0.0
    scaled = torch.where(is_zero, 0.0, vectors / torch.where(is_zero, 1.0, size))
    squares = (scaled**2).sum(dim, keepdim=True)
    return scaled * torch.where(is_zero, 1.0, squares).rsqrt()


def remove_rounding(centered: Tensor, values: Tensor, dim: int) -> Tensor:
    """Set to 0 what is left of equal values after their mean is taken off, so that it is not mistaken for a direction.

    Args:
        centered: Values without their mean.
        values: The values.
        dim: Axis of the mean.
    """
    is_rounding = centered.abs() <= 4.0 * torch.finfo(values.dtype).eps * values.abs().amax(dim, keepdim=True)
    return torch.where(is_rounding, 0.0, centered)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a number above 0.

    Raises:
        ValueError: If it is not.
    """
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a number above 0, got {temperature}")


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction.

    Raises:
        ValueError: If it is neither ``"sum"`` nor ``"mean"``.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")


def check_logits(student_logits: Tensor, teacher_logits: Tensor, class_dim: int) -> None:
    """Refuse logits of different shapes, and those without at least two classes.

    Raises:
        ValueError: If they are such.
    """
    student, teacher = list(student_logits.shape), list(teacher_logits.shape)
    if not -len(student) <= class_dim < len(student):
        raise ValueError(f"class_dim={class_dim} is no axis of student logits of shape {student}")
    if student != teacher:
        same_rank = len(student) == len(teacher)
        classes = (
            f" ({teacher[class_dim]} and {student[class_dim]} classes along axis {class_dim})" if same_rank else ""
        )
        raise ValueError(
            f"the teacher's logits have shape {teacher}, the student's {student}{classes}: "
            "distil from a teacher with the student's inputs and classes"
        )
    if student[class_dim] < 2:
        raise ValueError(
            f"a soft-target loss needs at least two classes along axis {class_dim}, got logits of {student}"
        )


def reduce_positions(positions: Tensor, reduction: Reduction, mask: Tensor | None) -> Tensor:
    """Sum or mean of a loss over the positions that are valid; 0 if none is.

    Args:
        positions: The loss of each position.
        reduction: ``"sum"`` or ``"mean"``.
        mask: Which are valid, of the same shape; ``None``: all.

    Raises:
        ValueError: If the mask has another shape, or the reduction is unknown.
    """
    check_reduction(reduction)
    if mask is None:
        return positions.sum() if reduction == "sum" else positions.mean()
    if mask.shape != positions.shape:
        raise ValueError(f"the mask has shape {list(mask.shape)}, but there are {list(positions.shape)} positions")
    is_valid = mask.to(device=positions.device, dtype=torch.bool)
    total = torch.where(is_valid, positions, 0.0).sum()
    return total if reduction == "sum" else total / is_valid.sum().clamp(min=1)
