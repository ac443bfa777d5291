"""Teacher that is an average of the student's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.teacher.student import StudentTeacher
from lightning_optim.distillation.teacher.student_copy import Update


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class EMA(StudentTeacher):
    """Mean teacher: an exponential moving average of the student's weights (Tarvainen and Valpola, 2017).

    ``teacher = decay * teacher + (1 - decay) * student`` (arXiv:1703.01780, eq. 2) after each step of the optimizer,
    not after each batch under accumulation, nor after a step that half precision has skipped. Buffers, such as the
    statistics of batch norms, are the student's; those of rank 0, if there are several. The average begins with the
    student's weights when the fit does, lies in this callback's state, and is pruned with the student: masked, and cut
    in the middle of a fit.

    Use it where no trained network is at hand, and where unlabelled data are to be learned from. ``1 / (1 - decay)``
    steps are about what it remembers: 0.99 for short fits, 0.999 for long ones.

    Args:
        precision: Number format of the teacher: ``None`` or ``"float32"``, which a student in half precision needs.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.
        decay: Share of the average that stays in a step, between 0 and 1, both excluded.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import torch
        >>> EMA(decay=0.9).update(torch.tensor(1.0), torch.tensor(2.0))
        tensor(1.1000)
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        StudentTeacher.__post_init__(self)
        if not 0.0 < self.decay < 1.0:
            raise ValueError(
                f"decay must lie between 0 and 1, got {self.decay}: at 0 the teacher is the student itself, "
                "at 1 it stays as it is, which Uncompressed does"
            )
        if self.precision not in (None, "float32"):
            raise ValueError(
                f"an average of weights needs float32, got precision={self.precision!r}, in which small steps are "
                "lost: leave precision out"
            )

    @property
    @override
    def update(self) -> Update:
        return self._average

    def _average(self, teacher: Tensor, student: Tensor) -> Tensor:
        return teacher.lerp(student, 1.0 - self.decay)
