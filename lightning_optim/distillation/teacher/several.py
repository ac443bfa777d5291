"""Several teachers that answer as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import by_key, checked
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.combined import CombinedTeacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Several(Teacher):
    """Several teachers: the student learns from the mean of their answers, or from a weighted mean.

    Of classifiers it is the mean of logits, that is the geometric mean of what they think likely, which Hinton et al.
    (2015; arXiv:1503.02531, sec. 1) name beside the arithmetic one. Use it where an ensemble is better than any
    of its members: its knowledge goes into one network.

    Each teacher may come from anywhere and keeps settings of its own. All must give outputs of the same structure and
    shapes. A loss that looks inside names a module of one of them after its key: ``teacher="large.layer3"``, or
    ``"*.layer3"`` for a module of each.

    Args:
        teachers: The teachers by key; a key has no dot.
        weights: Share of each in the mean by the same keys, at least 0 and not all 0; they are divided by their sum.
            ``None`` is the plain mean.

    Raises:
        TypeError: If a teacher is of another kind.
        ValueError: If there is none, or keys or weights do not fit.

    Example:
        >>> from lightning_optim.distillation import ModuleTeacher
        >>> first, second = ModuleTeacher(module=nn.Linear(2, 3)), ModuleTeacher(module=nn.Linear(2, 3))
        >>> Several(teachers={"first": first, "second": second}, weights={"first": 3, "second": 1}).shares
        {'first': 0.75, 'second': 0.25}
    """

    teachers: Mapping[str, Teacher]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        by_key("teachers", self.teachers, Teacher, "teacher")  # type: ignore[type-abstract]  # any of its kind
        for key in self.teachers:
            if "." in key:
                raise ValueError(f"a teacher's key stands before the names of its modules, and has no dot: got {key!r}")
        if self.weights is None:
            return
        if set(self.weights) != set(self.teachers):
            raise ValueError(f"weights are of {sorted(self.weights)}, teachers are {sorted(self.teachers)}")
        if min(self.weights.values()) < 0 or not 0.0 < sum(self.weights.values()) < float("inf"):
            raise ValueError(
                f"weights must be numbers of at least 0 whose sum is positive, got {dict(self.weights)}: leave out a "
                "teacher that shall have no say"
            )

    @property
    def shares(self) -> dict[str, float]:
        """Share of each teacher in the mean."""
        weights = self.weights or dict.fromkeys(self.teachers, 1.0)
        total = sum(weights.values())
        return {key: weights[key] / total for key in self.teachers}

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        networks = nn.Module()
        for key, teacher in self.teachers.items():
            networks.add_module(key, teacher.load(student))
        return networks

    @override
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        networks = dict(module.named_children())
        frozen = {key: teacher.freeze(networks[key]) for key, teacher in self.teachers.items()}
        return CombinedTeacher(module, frozen, self.shares)
