"""Base of losses that compare outputs, and the tensor of an output that they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.distillation.loss.base import Loss
from lightning_optim.distillation.observation import Observation
from lightning_optim.surgery.containers import find_tensors, name_of

Network = Literal["student", "teacher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLoss(Loss):
    """Output loss: compares one tensor of the student's output with one of the teacher's.

    Args:
        output: Where the tensor is in the student's output: a key, an index, several joined by dots
            (``"heads.0.logits"``), or ``None`` if it is the output.
        teacher_output: Where it is in the teacher's output; ``None`` is where ``output`` says, or the teacher's
            output itself if that is a tensor.
        mask: Keyword argument of the network's call that marks valid positions, such as ``"attention_mask"``.
    """

    output: str | int | None = None
    teacher_output: str | int | None = None
    mask: str | None = None

    def outputs(self, student: Observation, teacher: Observation) -> tuple[Tensor, Tensor]:
        """The two tensors that are compared, the student's first.

        Raises:
            ValueError: If an output holds none where it should be.
        """
        key = self._teacher_key(teacher.output)
        theirs = select_output(teacher.output, key, network="teacher", setting="teacher_output")
        return select_output(student.output, self.output), theirs

    def _teacher_key(self, output: Any) -> str | int | None:
        """Where the tensor is in the teacher's output.

        Args:
            output: What the teacher returned.
        """
        if self.teacher_output is not None:
            return self.teacher_output
        return None if isinstance(output, Tensor) else self.output

    @override
    def kept_outputs(self, output: Any) -> tuple[str | int | None, ...] | None:
        return (self._teacher_key(output),)

    def valid(self, student: Observation) -> Tensor | None:
        """Which positions are valid; ``None`` if all are.

        Raises:
            ValueError: If the network was called without the mask.
        """
        return None if self.mask is None else call_mask(student, self.mask)


def call_mask(student: Observation, name: str) -> Tensor:
    """The keyword argument of the student's call that marks valid positions, as boolean.

    Args:
        student: The student's call.
        name: The keyword.

    Raises:
        ValueError: If the call has none.
    """
    mask = student.kwargs.get(name)
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"the student's network was called without a tensor {name!r}; its keyword arguments were "
            f"{sorted(student.kwargs) or 'none'}: set mask to one of them or to null"
        )
    return mask.to(torch.bool)


def select_output(
    output: Any, key: str | int | None, *, network: Network = "student", setting: str = "output"
) -> Tensor:
    """Return one tensor of a network's output.

    Args:
        output: A tensor, or any container of tensors: a sequence, a mapping (such as the outputs of Hugging Face
            models), a dataclass or another object with fields, or what is nested of them.
        key: Index into a sequence, name of an entry or field, or several of them joined by dots; ``None`` if the
            output is the tensor.
        network: Whose output it is, for the message.
        setting: Which setting holds the key, for the message.

    Raises:
        ValueError: If the key leads to no tensor, naming what there is.

    Example:
        >>> import torch
        >>> select_output({"heads": [{"logits": torch.zeros(2, 3)}]}, "heads.0.logits").shape
        torch.Size([2, 3])
    """
    found = entry_of(output, key)
    if isinstance(found, Tensor):
        return found
    wanted = "a tensor" if key is None else f"a tensor at {setting}={key!r}"
    raise ValueError(
        f"{network}: the loss needs {wanted}, but the network returns {_describe(output)}; {_way_out(output, setting)}"
    )


def entry_of(output: Any, key: str | int | None) -> Any:
    """What is at a key of an output or a batch; ``None`` if there is nothing.

    Args:
        output: A tensor or a container, as ``select_output`` takes it.
        key: As ``select_output`` takes it.
    """
    if key is None:
        return output
    if isinstance(output, Mapping):
        found = output.get(key)
    elif isinstance(key, int):
        is_inside = isinstance(output, Sequence) and -len(output) <= key < len(output)
        return output[key] if is_inside else None
    else:
        found = getattr(output, key, None)
    if isinstance(found, Tensor) and not isinstance(output, Tensor):
        return found
    return next((tensor for path, tensor in find_tensors(output) if path and name_of(path) == key), None)


def _describe(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} with keys {list(output)}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {kind} of {len(output)} entries"
    return f"a {kind}"


def _way_out(output: Any, setting: str) -> str:
    if isinstance(output, Tensor):
        return f"set {setting} to null"
    found = [f"{name_of(path)!r} of shape {list(tensor.shape)}" for path, tensor in find_tensors(output)]
    return f"set {setting} to one of its tensors: {', '.join(found)}" if found else "it holds no tensor"
