"""Frozen teacher: it answers the student's calls and never learns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.distillation.observation import FeatureTaps, Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.teacher.loaded import LoadedTeacher, Precision
from lightning_optim.distillation.teacher.student_copy import StudentCopy
from lightning_optim.errors import TeacherError, cause_of
from lightning_optim.surgery.containers import map_tensors, tensors_of
from lightning_optim.surgery.modes import evaluated
from lightning_optim.surgery.tap import ModuleCall


@final
class FrozenTeacher(LoadedTeacher):
    """Frozen teacher: a network in evaluation mode, without gradients, that answers calls of the student.

    Args:
        module: The network; frozen in place.
        precision: Number format of weights and arithmetic; ``None`` follows the student.
        copies: The copies of the student that it is made of.
    """

    def __init__(
        self, module: nn.Module, precision: Precision | None = None, copies: Sequence[StudentCopy] = ()
    ) -> None:
        self._module = evaluated(module.requires_grad_(False))
        self._copies = copies
        self._taps = FeatureTaps()
        self._dtype: torch.dtype | None = None if precision is None else getattr(torch, precision)

    @property
    @override
    def module(self) -> nn.Module:
        return self._module

    @property
    @override
    def copies(self) -> Sequence[StudentCopy]:
        return self._copies

    @override
    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        self.module.to(device=device, dtype=self._dtype or student_dtype)

    @override
    def look_at(self, places: Iterable[Place]) -> None:
        self._taps.attach(self.module, places)

    @override
    def release(self) -> None:
        self._taps.remove()

    @override
    def __call__(self, call: ModuleCall, batch: Any = None) -> Recording:
        """Answer the inputs of ``call``, without gradient.

        With a precision of its own, the teacher is kept out of autocast: autocast would convert frozen weights anew at
        each use, since it caches the conversion of those alone that need a gradient.
        """
        with torch.no_grad():
            if self._dtype is None:
                return self._answer(call.args, call.kwargs)
            args, kwargs = map_tensors(self._convert, (call.args, call.kwargs))
            with torch.autocast(self._device_type(), enabled=False):
                return self._answer(args, kwargs)

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        self._taps.open()
        call = ModuleCall(args, kwargs, self._output(args, kwargs))
        return self._taps.take([call])[0]

    def _output(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.module(*args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if "out of memory" in str(error):  # what looks for a batch size that fits must see it as it is
                raise
            shapes = [list(tensor.shape) for tensor in tensors_of((args, kwargs))]
            raise TeacherError(
                f"the teacher, a {type(self.module).__name__}, cannot answer what the student's network was given, "
                f"tensors of shape {', '.join(map(str, shapes)) or 'none'}: {cause_of(error)}; distil from a teacher "
                "that takes the student's inputs, or wrap it in a module that converts them"
            ) from error

    @override
    def digest(self) -> tuple[float, ...]:
        tensors = [tensor.double() for tensor in self.module.state_dict().values() if tensor.numel()]
        return sum(float(tensor.sum()) for tensor in tensors), sum(float(tensor.abs().sum()) for tensor in tensors)

    def _convert(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if value.is_floating_point() else value

    def _device_type(self) -> str:
        tensor = next(iter(self.module.state_dict().values()), None)
        return "cpu" if tensor is None else tensor.device.type
