"""Inputs of ``torch.export``: a model and its arguments, made ready to be captured."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.torch_private import pytree


@final
@dataclass(frozen=True, slots=True)
class CaptureInputs:
    """Inputs of ``torch.export``: a model and its arguments.

    Args:
        model: A copy in evaluation mode on the CPU.
        args: Positional inputs.
        kwargs: Keyword inputs.
        shapes: The dynamic dimensions; ``None`` if all are fixed.
        input_names: Names of the inputs, where the capture would not know them.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: dict[str, Any] | None
    input_names: list[str] | None


def prepare_capture(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    open_dims: Sequence[Mapping[int, torch.export.Dim]] | None,
) -> CaptureInputs:
    """Return a copy of a model, row-major and without gradients, with inputs of two samples or more.

    Args:
        model: The model; it stays as it is.
        args: Example positional inputs.
        kwargs: Example keyword inputs.
        open_dims: Dynamic dimensions of every input tensor, in order; ``None`` fixes all.
    """
    frozen = eval_copy(model).cpu()
    _set_row_major(frozen)
    given = (tuple(args), dict(kwargs or {}))
    inputs, named = pytree.tree_map_only(Tensor, lambda leaf: _row_major(leaf.detach().cpu()), given)
    if open_dims is not None:
        inputs, named = _at_least_two((inputs, named), open_dims)
    input_names = None
    if _collects_keywords(frozen, inputs, named):
        input_names = _names_by_position(inputs, named)
        frozen, inputs, named = _ByPosition(frozen, len(inputs), tuple(named)), (*inputs, *named.values()), {}
    shapes = None if open_dims is None else _shapes(frozen, inputs, named, open_dims)
    return CaptureInputs(frozen, inputs, named, shapes, input_names)


@final
class _ByPosition(nn.Module):
    """Wrapper that takes by position what a model collects in ``**kwargs``: no dimension there could be dynamic.

    Args:
        model: The model.
        num_positional: How many of the values it takes by position.
        names: Names of the others.
    """

    def __init__(self, model: nn.Module, num_positional: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self._num_positional, self._names = model, num_positional, names

    @override
    def forward(self, *values: Any) -> Any:
        """Run the model."""
        named = dict(zip(self._names, values[self._num_positional :], strict=True))
        return self.model(*values[: self._num_positional], **named)


def _collects_keywords(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    signature = inspect.signature(model.forward)
    collected = {name for name, kind in signature.parameters.items() if kind.kind is inspect.Parameter.VAR_KEYWORD}
    return bool(collected & signature.bind(*args, **kwargs).arguments.keys())


def _names_by_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str] | None:
    """Names of the inputs: keywords keep theirs; a nested input has several, which only the exporter knows."""
    if not all(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return None
    return [*(f"args_{place}" for place in range(len(args))), *kwargs]


def _set_row_major(model: nn.Module) -> None:
    """Undo ``channels_last``: pooling would be traced with strides, and the file would gather element by element."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _row_major(tensor.data)


def _row_major(tensor: Tensor) -> Tensor:
    """Copy a tensor; ``contiguous()`` would keep the strides of one that has a single channel."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _at_least_two(inputs: Any, open_dims: Sequence[Mapping[int, Any]]) -> Any:
    """Double what is 1 long along a dynamic dimension: ``torch.export`` would fix it."""
    dims = iter(open_dims)

    def double(leaf: Tensor) -> Tensor:
        for dim in next(dims):
            leaf = torch.cat([leaf, leaf], dim) if leaf.shape[dim] == 1 else leaf
        return leaf

    return pytree.tree_map_only(Tensor, double, inputs)


def _shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], open_dims: Sequence[Mapping[int, Any]]
) -> dict[str, Any]:
    dims = iter(open_dims)
    in_order = pytree.tree_map(lambda leaf: dict(next(dims)) if isinstance(leaf, Tensor) else None, (args, kwargs))
    bound = inspect.signature(model.forward).bind(*in_order[0], **in_order[1]).arguments
    return dict(bound)
