"""Divergences of large logits, a block of rows at a time: nothing of their size is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing_extensions import override

from lightning_optim.distillation.kernel.divergence import row_blocks
from lightning_optim.surgery.torch_private import is_transforming

# Logits of both networks and the axis of their classes -> the divergence of each position.
Divergence = Callable[[Tensor, Tensor, int], Tensor]

# Numbers from which on blocks are taken: 32 MiB of float32. Below, operators on the whole are a little faster.
_LARGE = 2**23


def in_blocks(divergence: Divergence, student: Tensor, teacher: Tensor, class_dim: int) -> Tensor:
    """Divergence of each position, without the tensors that automatic differentiation would keep of large logits.

    Its values and its gradient are those of ``divergence``, on one thread to the bit. Where logits are large and their
    classes lie along the last axis, they are computed for a few rows at a time, and once more in the backward pass: of
    contiguous logits, nothing of their size is made beside the gradient itself. What is differentiated twice or
    forward, compiled or mapped over is left to operators.

    Args:
        divergence: Takes logits of the student and of the teacher, and the axis of their classes; returns one number
            of each position, which depends on no other position.
        student: Logits with the classes along ``class_dim``, and at least two axes.
        teacher: Those of the teacher, of the same shape.
        class_dim: Axis of the classes.

    Example:
        >>> in_blocks(lambda mine, theirs, dim: (mine - theirs).abs().sum(dim), torch.zeros(1, 2), torch.ones(1, 2), 1)
        tensor([2.])
    """
    if class_dim % student.ndim != student.ndim - 1 or not _pays(student, teacher):
        return divergence(student, teacher, class_dim)
    rows: Tensor = _InBlocks.apply(student.flatten(0, -2), teacher.flatten(0, -2), divergence)  # type: ignore[no-untyped-call]
    return rows.view(student.shape[:-1])


def _pays(student: Tensor, teacher: Tensor) -> bool:
    """Whether logits are large, and no more than the student's gradient is asked for."""
    if student.numel() < _LARGE or torch.compiler.is_compiling() or is_transforming():
        return False
    is_dual = forward_ad.unpack_dual(student).tangent is not None  # type: ignore[no-untyped-call]  # torch's
    is_plain = type(student) is type(teacher) is Tensor
    return is_plain and not (is_dual or teacher.requires_grad or teacher.is_inference())


class _InBlocks(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.divergence = divergence
        with torch.autocast(student.device.type, enabled=False):
            return torch.cat([divergence(student[block], teacher[block], -1) for block in row_blocks(student)])

    @staticmethod
    @override
    def backward(ctx: Any, factor: Tensor) -> Any:
        student, teacher = ctx.saved_tensors
        with torch.autocast(student.device.type, enabled=False):
            if torch.is_grad_enabled():  # the gradient itself is differentiated
                rows = ctx.divergence(student, teacher, -1)
                return *torch.autograd.grad(rows, student, factor, create_graph=True), None, None
            gradient = torch.empty_like(student)
            for block in row_blocks(student):
                gradient[block] = _gradient(ctx.divergence, student[block], teacher[block], factor[block])
            return gradient, None, None


@torch.enable_grad()
def _gradient(divergence: Divergence, student: Tensor, teacher: Tensor, factor: Tensor) -> Tensor:
    leaf = student.detach().requires_grad_()
    return torch.autograd.grad(divergence(leaf, teacher, -1), leaf, factor)[0]
