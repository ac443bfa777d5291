"""Checks of a teacher before a fit: nothing has changed where one is refused."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn

from lightning_optim.surgery.shard import local


def check_teacher(teacher: nn.Module, pl_module: LightningModule) -> None:
    """Refuse a teacher that cannot teach.

    Args:
        teacher: The teacher's network.
        pl_module: The LightningModule of the student.

    Raises:
        ValueError: If it shares a weight with the student, or has one that is not finite.
    """
    own = {id(parameter) for parameter in pl_module.parameters()}
    for name, parameter in teacher.named_parameters():
        if id(parameter) in own:
            raise ValueError(
                f"the teacher's weight {name!r} is the student's own, and would be frozen with it; "
                "give a copy.deepcopy of the network as teacher"
            )
        if not bool(local(parameter).isfinite().all()):
            raise ValueError(
                f"the teacher's weight {name!r} is not finite, so its answers would be nothing to learn from: "
                "did its own training diverge? Take an earlier checkpoint"
            )
    for name, buffer in teacher.named_buffers():  # a mask may hold infinities
        if buffer.is_floating_point() and bool(local(buffer).isnan().any()):
            raise ValueError(
                f"the teacher's buffer {name!r} holds NaN: did its training diverge? Take an earlier checkpoint"
            )
