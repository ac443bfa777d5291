"""Initialization of a student from layers of its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from lightning_optim.distillation.place import Side, find_names
from lightning_optim.errors import TeacherError
from lightning_optim.surgery.select import plain_name, submodule


@final
class LayerCopies:
    """Layers of a student that begin as layers of its teacher.

    A name with ``*`` stands for modules in the order of the network. Where the teacher has a multiple of the student's,
    they are spread evenly from the first on: of six blocks, the three of a student begin as those at 0, 2 and 4
    (DistilBERT, arXiv:1910.01108, section 3: "one layer out of two").

    Args:
        names: Modules of the student -> modules of the teacher, as places of losses are named.

    Raises:
        ValueError: If no module is named.

    Example:
        >>> student, teacher = (nn.Sequential(*(nn.Linear(2, 2) for _ in range(count))) for count in (2, 4))
        >>> LayerCopies({"*": "*"}).copy(Side(student), Side(teacher))
        ('0 from 0', '1 from 2')
        >>> bool((student[1].weight == teacher[2].weight).all())
        True
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        if not names:
            raise ValueError("initialize_from names modules of the student and of the teacher, {} names none")
        self._names = dict(names)

    def copy(self, student: Side, teacher: Side) -> tuple[str, ...]:
        """Copy weights and statistics, in place, and return which layer began as which.

        Raises:
            TargetError: If a name fits no module.
            TeacherError: If two layers differ in what they hold, the teacher's cannot be spread evenly over the
                student's, or one of the student's is named twice; nothing is copied then.
        """
        pairs = [pair for mine, theirs in self._names.items() for pair in _paired(student, teacher, mine, theirs)]
        seen: set[str] = set()
        copies: list[tuple[Tensor, Tensor]] = []
        for mine, theirs in pairs:
            if mine in seen:
                raise TeacherError(f"initialize_from names {mine!r} of the student twice; name it once")
            seen.add(mine)
            copies += _tensors_of_both(student.root, teacher.root, mine, theirs)
        with torch.no_grad():
            for tensor, source in copies:
                tensor.copy_(source)
        return tuple(f"{mine} from {theirs}" for mine, theirs in pairs)


def _paired(student: Side, teacher: Side, mine: str, theirs: str) -> list[tuple[str, str]]:
    own, others = find_names(student.root, mine, "student"), find_names(teacher.root, theirs, "teacher")
    step, rest = divmod(len(others), len(own))
    if rest or not step:
        raise TeacherError(
            f"initialize_from: {mine!r} names {len(own)} modules of the student ({', '.join(own)}), {theirs!r} "
            f"{len(others)} of the teacher ({', '.join(others)}): give as many, or a multiple, or name them one by one"
        )
    return list(zip(own, others[::step], strict=True))


def _tensors_of_both(student: nn.Module, teacher: nn.Module, mine: str, theirs: str) -> list[tuple[Tensor, Tensor]]:
    own, others = _state(submodule(student, mine)), _state(submodule(teacher, theirs))
    for name in sorted(own.keys() | others.keys()):
        has, gets = (f"{list(each[name].shape)}" if name in each else "nothing" for each in (own, others))
        if has != gets:
            raise TeacherError(
                f"initialize_from: {mine!r} of the student cannot begin as {theirs!r} of the teacher: at "
                f"{name or 'itself'!r} the one has {has}, the other {gets}; name layers of one shape, and list "
                "DistillationTeacher before callbacks that replace layers"
            )
    return [(tensor, others[name]) for name, tensor in own.items()]


def _state(module: nn.Module) -> dict[str, Tensor]:
    found = module.state_dict(keep_vars=True)
    return {plain_name(name): value for name, value in found.items() if isinstance(value, Tensor)}
