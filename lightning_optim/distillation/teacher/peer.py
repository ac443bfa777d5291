"""Teacher that learns beside the student, from the task and from the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.distillation.teacher.student_copy import StudentCopy
from lightning_optim.errors import TeacherError, cause_of
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.tap import ModuleCall

MakeOptimizer: TypeAlias = Callable[[list[Tensor]], Optimizer]


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Teacher):
    """Peer: a second student, with which the first learns mutually (deep mutual learning, Zhang et al., 2018).

    Each learns from the task and from what the other says of the same batch: ``L1 = task(p1) + KL(p2 || p1)`` and
    ``L2 = task(p2) + KL(p1 || p2)`` (arXiv:1706.00384), weighted as the callback says, and with whatever losses on
    outputs it has. What one learns from is a constant for the other. The training step runs once more, silently, with
    the peer in place of the student's network; it then sees the same inputs.

    Use it where no trained teacher is at hand: two networks that begin apart teach each other what each is unsure of.
    The step costs what a step of both takes.

    The peer belongs to the callback: its weights, optimizer and statistics lie in the callback's state and in no
    checkpoint of the student. Its optimizer steps when the student's does; gradients are averaged over ranks, and the
    user's clipping does not touch them. After the fit it is ``callback.teacher_module``.

    Args:
        module: The second network, which takes the inputs of the student's network. A copy of it is trained, anew in
            each fit.
        optimizer: Makes its optimizer from its parameters, such as ``partial(torch.optim.SGD, lr=0.1)``; ``None`` is
            AdamW with a learning rate of 0.001.

    Raises:
        TypeError: If it is not a module.
        ValueError: If it has nothing to train.

    Example:
        >>> Peer(module=nn.Linear(2, 3)).make_optimizer([torch.zeros(1)]).defaults["lr"]
        0.001
    """

    module: nn.Module
    optimizer: partial[Any] | FunctionType | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"a peer must be a torch module, got {type(self.module).__name__}")
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError("a peer learns beside the student, but no parameter of this module requires a gradient")

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        return copy_model(self.module)

    @override
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        return LoadedPeer(module)

    def make_optimizer(self, tensors: list[Tensor]) -> Optimizer:
        """Make the optimizer of the peer's parameters.

        Args:
            tensors: The parameters.
        """
        made: Optimizer = AdamW(tensors, 1e-3) if self.optimizer is None else self.optimizer(tensors)
        return made


@final
class LoadedPeer(LoadedTeacher):
    """Loaded peer: outside training steps it answers as any teacher, in evaluation mode and without gradient.

    Args:
        module: The network; it stays trainable.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    @override
    def module(self) -> nn.Module:
        return self._module

    @property
    @override
    def copies(self) -> Sequence[StudentCopy]:
        return ()

    @override
    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        self._module.to(device=device, dtype=student_dtype)

    @override
    def look_at(self, places: Iterable[Place]) -> None:
        assert not list(places), "losses of a peer look at outputs"

    @override
    def release(self) -> None:
        self._module.eval()

    @override
    def __call__(self, call: ModuleCall, batch: Any = None) -> Recording:
        with torch.no_grad(), evaluating(self._module):
            return Recording(ModuleCall(call.args, call.kwargs, self.run(*call.args, **call.kwargs)))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network as it is.

        Raises:
            TeacherError: If it does not take these inputs.
        """
        try:
            return self._module(*args, **kwargs)
        except TypeError as error:
            raise TeacherError(
                f"the peer, a {type(self._module).__name__}, cannot be called as the student's network is: "
                f"{cause_of(error)}; give a network of the same inputs"
            ) from error

    @override
    def inputs_for(self, call: ModuleCall, batch: Any) -> Any:
        return call.args, call.kwargs

    @override
    def fingerprint(self) -> str:
        raise TeacherError("a peer learns, so that its answers cannot be kept")

    @override
    def advice(self, call: ModuleCall, batch: Any) -> list[str]:
        return []
