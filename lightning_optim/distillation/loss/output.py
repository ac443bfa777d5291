"""Output of a network: the tensor in it that a loss compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def select_output(output: Any, key: str | int | None) -> Tensor:
    """Return one tensor of a network's output.

    Args:
        output: A tensor, a sequence, a mapping (such as the outputs of Hugging Face models) or an object with fields.
        key: Index into a sequence, or name of an entry or field; ``None`` if the output is the tensor.

    Raises:
        ValueError: If the key leads to no tensor, naming what there is.

    Example:
        >>> import torch
        >>> select_output({"logits": torch.zeros(2, 3)}, "logits").shape
        torch.Size([2, 3])
    """
    found = _entry(output, key)
    if isinstance(found, Tensor):
        return found
    wanted = "a tensor" if key is None else f"a tensor at output={key!r}"
    raise ValueError(
        f"the loss needs {wanted}, but the network returns {_describe(output)}; set output to one of its keys"
    )


def _entry(output: Any, key: str | int | None) -> Any:
    if key is None:
        return output
    if isinstance(key, int):
        is_inside = isinstance(output, Sequence) and -len(output) <= key < len(output)
        return output[key] if is_inside else None
    return output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)


def _describe(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} with keys {list(output)}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {kind} of {len(output)} entries"
    return f"a {kind}"
