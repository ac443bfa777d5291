"""Teacher that is the student before its compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.teacher.student import StudentTeacher
from lightning_optim.distillation.teacher.student_copy import Update


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Uncompressed(StudentTeacher):
    """Self-distillation from the dense network: the teacher is the student as it is when the fit begins.

    Use it while a trained network is pruned or quantized: it goes on answering as it did, and no other network is
    needed. The copy is made before any callback changes the network and before the first step, whatever the order of
    callbacks. Its weights lie in this callback's state, so that a fit that is resumed has the same teacher; a
    checkpoint grows by their size. Each fit begins with a copy of its own: to learn from a network of an earlier fit,
    give its file to ``Checkpoint``.

    Args:
        precision: Number format of the teacher; see ``NetworkTeacher``.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.

    Example:
        >>> from torch import nn
        >>> student = nn.Linear(2, 3)
        >>> teacher = Uncompressed().load(lambda: student)
        >>> teacher is student, bool((teacher.weight == student.weight).all())
        (False, True)
    """

    @property
    @override
    def update(self) -> Update | None:
        return None
