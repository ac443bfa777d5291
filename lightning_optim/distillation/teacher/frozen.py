"""Frozen teacher: it answers the student's calls and never learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.distillation.cache.fingerprint import weights_fingerprint
from lightning_optim.distillation.input_map.base import name_of_map
from lightning_optim.distillation.observation import FeatureTaps, Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.teacher.compiled import compile_teacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher, Precision
from lightning_optim.distillation.teacher.pace import slower_than_float32
from lightning_optim.distillation.teacher.student_copy import StudentCopy
from lightning_optim.errors import TeacherError, cause_of
from lightning_optim.surgery.containers import map_tensors, tensors_of
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.modes import evaluated
from lightning_optim.surgery.shard import is_sharded
from lightning_optim.surgery.tap import ModuleCall


@final
class FrozenTeacher(LoadedTeacher):
    """Frozen teacher: a network in evaluation mode, without gradients, that answers calls of the student.

    Args:
        module: The network; frozen in place.
        precision: Number format of weights and arithmetic; ``None`` follows the student.
        input_map: What the network is given in place of the student's inputs; ``None`` is the same.
        copies: The copies of the student that it is made of.
        device: Where it computes; ``None`` is where the student is trained.
        backend: Backend of ``torch.compile`` to compile it by; ``None`` leaves it as it is.
    """

    def __init__(
        self,
        module: nn.Module,
        precision: Precision | None = None,
        input_map: Callable[[Inputs, Any], Any] | None = None,
        copies: Sequence[StudentCopy] = (),
        device: str | None = None,
        backend: str | None = None,
    ) -> None:
        self._module = evaluated(module.requires_grad_(False))
        self._input_map, self._copies = input_map, copies
        self._device, self._backend = None if device is None else torch.device(device), backend
        self._run: Callable[..., Any] = self._module
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
        if not any(map(is_sharded, self.module.parameters())):
            self.module.to(device=self._device or device, dtype=self._dtype or student_dtype)
        elif self._dtype is not None or self._device is not None:
            raise ValueError(
                "a teacher that fully_shard has sharded stays where it is, in its own number format: leave out "
                "precision and device, and give fully_shard a MixedPrecisionPolicy"
            )

    @override
    def look_at(self, places: Iterable[Place]) -> None:
        self._taps.attach(self.module, places)
        if self._backend is not None:  # hooks that come after the first call are not compiled
            is_constant = not any(copy.follows for copy in self._copies)
            self._run = compile_teacher(self.module, self._backend, is_constant=is_constant)

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
            inputs = self._mapped(call, batch)
            if self._device is None:
                return self._converted(inputs)
            home = next((tensor.device for tensor in tensors_of((inputs.args, inputs.kwargs))), self._device)
            args, kwargs = map_tensors(lambda value: value.to(self._device), (inputs.args, inputs.kwargs))
            found = self._converted(Inputs(args, kwargs))
            output, features = map_tensors(
                lambda value: value.to(home), (found.call.output, [*found.features.values()])
            )
            call = ModuleCall(inputs.args, inputs.kwargs, output)
            return Recording(call, dict(zip(found.features, features, strict=True)))

    def _converted(self, inputs: Inputs) -> Recording:
        if self._dtype is None:
            return self._answer(inputs)
        args, kwargs = map_tensors(self._convert, (inputs.args, inputs.kwargs))
        with torch.autocast(self._device_type(), enabled=False):
            return self._answer(Inputs(args, kwargs))

    def _mapped(self, call: ModuleCall, batch: Any) -> Inputs:
        inputs = Inputs(call.args, call.kwargs)
        return inputs if self._input_map is None else Inputs.of(self._input_map(inputs, batch))

    def _answer(self, inputs: Inputs) -> Recording:
        self._taps.open()
        call = ModuleCall(inputs.args, inputs.kwargs, self._output(inputs))
        return self._taps.take([call])[0]

    def _output(self, inputs: Inputs) -> Any:
        try:
            return inputs.call(self._run)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if "out of memory" in str(error):  # what looks for a batch size that fits must see it as it is
                raise
            raise TeacherError(self._refusal(inputs, error)) from error

    def _refusal(self, inputs: Inputs, error: Exception) -> str:
        found = tensors_of((inputs.args, inputs.kwargs))
        shapes = ", ".join(str(list(tensor.shape)) for tensor in found) or "none"
        given, advice = "the student's network was given", "distil from a teacher that takes the student's inputs, or "
        if self._input_map is not None:
            given, advice = f"input_map ({name_of_map(self._input_map)}) gives it", ""
        return (
            f"the teacher, a {type(self.module).__name__}, cannot answer what {given}, tensors of shape {shapes}: "
            f"{cause_of(error)}; {advice}set its input_map to what makes its inputs"
        )

    @override
    def inputs_for(self, call: ModuleCall, batch: Any) -> Any:
        inputs = self._mapped(call, batch)
        return inputs.args, inputs.kwargs

    @override
    def fingerprint(self) -> str:
        return weights_fingerprint(self.module)

    @override
    def advice(self, call: ModuleCall, batch: Any) -> list[str]:
        if self._dtype in (None, torch.float32) or self._backend is not None:
            return []
        found = slower_than_float32(self.module, self._mapped(call, batch), self._dtype or torch.float32)
        if found is None:
            return []
        own, exact = found
        return [
            f"the teacher, a {type(self.module).__name__}, takes {own * 1e3:.3g} ms a batch in "
            f"{str(self._dtype).removeprefix('torch.')} and {exact * 1e3:.3g} ms in float32 on this processor: set its "
            "precision to 'float32'"
        ]

    def _convert(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if value.is_floating_point() else value

    def _device_type(self) -> str:
        tensor = next(chain(self.module.parameters(), self.module.buffers()), None)
        return "cpu" if tensor is None else tensor.device.type
