"""Teacher that is in memory already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.teacher.network import NetworkTeacher


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTeacher(NetworkTeacher):
    """Teacher in memory: a module, used as it is.

    It is frozen and set to evaluation mode. To go on training it, pass a deep copy.

    Args:
        precision: Number format of the teacher; see ``NetworkTeacher``.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.
        module: The trained network; called with the inputs of the student's network.

    Raises:
        TypeError: If it is not a module.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> ModuleTeacher(module=net).load(lambda: net) is net
        True
    """

    module: nn.Module

    def __post_init__(self) -> None:
        NetworkTeacher.__post_init__(self)
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"a teacher must be a torch module, got {type(self.module).__name__}")

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        return self.module
