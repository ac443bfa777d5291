"""Output of a network: the tensor in it that a loss compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_optim.surgery.containers import find_tensors, name_of

Network = Literal["student", "teacher"]


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
    found = _entry(output, key)
    if isinstance(found, Tensor):
        return found
    wanted = "a tensor" if key is None else f"a tensor at {setting}={key!r}"
    raise ValueError(
        f"{network}: the loss needs {wanted}, but the network returns {_describe(output)}; {_way_out(output, setting)}"
    )


def _entry(output: Any, key: str | int | None) -> Any:
    if key is None:
        return output
    if isinstance(key, int):
        is_inside = isinstance(output, Sequence) and -len(output) <= key < len(output)
        return output[key] if is_inside else None
    found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
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
