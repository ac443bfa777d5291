"""A model as an ONNX file: small, deterministic, whole or absent."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from lightning_optim.atomic import write_atomic
from lightning_optim.errors import ExportError
from lightning_optim.export.dependency import require
from lightning_optim.export.strip import strip_model

_LARGEST = 2**31 - 1  # protobuf's limit for one message, in bytes


def export_onnx(
    model: nn.Module,
    args: Sequence[Any],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    opset: int = 21,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
    name: str | None = None,
) -> Path:
    """Write a model to one ONNX file, without exporter metadata; equal weights give equal bytes.

    The model is exported as a copy in eval mode on the CPU; the caller's model stays as it is.

    Args:
        model: Any module that ``torch.export`` can capture.
        args: Example positional inputs; tensors have the batch as dimension 0.
        path: The file to write; an older one is replaced in one step.
        kwargs: Example keyword inputs.
        dynamic_batch: Leave the batch open: dimension 0 of every input tensor that is as long there as the
            first one. Otherwise the file takes the example's batch alone.
        opset: ONNX operator set.
        translations: Custom operator -> onnxscript function, for operators that ONNX does not know.
        name: What errors call the model; without one, its class.

    Returns:
        ``path``.

    Raises:
        ExportError: If the model cannot be captured or translated, or is larger than 2 GB.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(nn.Linear(3, 2), (torch.ones(2, 3),), f"{folder}/model.onnx")
        ...     path.stat().st_size < 300
        True
    """
    require("onnx")
    require("onnxscript")
    name = name or type(model).__name__
    named = dict(kwargs or {})
    try:
        frozen = copy.deepcopy(model).cpu().eval()
        _set_row_major(frozen)
        inputs, named = pytree.tree_map_only(Tensor, lambda leaf: _row_major(leaf.detach().cpu()), (tuple(args), named))
        shapes = None
        if dynamic_batch:
            inputs, named = _at_least_two((inputs, named))
        input_names = None
        if _collects_keywords(frozen, inputs, named):
            input_names = _names_by_position(inputs, named)
            frozen, inputs, named = _ByPosition(frozen, len(inputs), tuple(named)), (*inputs, *named.values()), {}
        if dynamic_batch:
            shapes = _open_batch(frozen, inputs, named)
        proto = _translate(frozen, inputs, named, shapes, opset, translations, input_names)
    except Exception as error:  # an exporter raises whatever its many layers raise
        raise ExportError(f"{name} cannot be exported to ONNX: {_first_line(error)}") from error
    strip_model(proto)
    if proto.ByteSize() > _LARGEST:
        raise ExportError(f"{name} takes {proto.ByteSize() / 1e9:.1f} GB, one ONNX file holds 2 GB")
    return write_atomic(path, proto.SerializeToString(deterministic=True))


def _translate(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: dict[str, Any] | None,
    opset: int,
    translations: Mapping[Any, Callable[..., Any]] | None,
    input_names: list[str] | None,
) -> Any:
    with _silence(), torch.no_grad():
        names = _output_names(model(*args, **kwargs))
        # Captured here, not by torch.onnx: its fallbacks would bake a batch in rather than fail.
        captured = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            captured,
            dynamic_shapes=shapes,  # names the open dimensions
            dynamo=True,
            opset_version=opset,
            input_names=input_names,
            output_names=names,
            custom_translation_table=dict(translations or {}),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True always gives a program
    return program.model_proto


@final
class _ByPosition(nn.Module):
    """Takes by position what a model collects in ``**kwargs``, where ``torch.export`` cannot open a dimension.

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
    """Keywords keep their names; a nested input has several, which only the exporter knows."""
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


def _at_least_two(inputs: Any) -> Any:
    """Double a batch of one: ``torch.export`` would bake a dimension of 1 in."""
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves or len(leaves[0]) != 1:
        return inputs
    double = lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim and len(leaf) == 1 else leaf  # noqa: E731  # one use
    return pytree.tree_map_only(Tensor, double, inputs)


def _open_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    size = len(leaves[0]) if leaves else 0

    def shape_of(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return {0: batch} if leaf.ndim and len(leaf) == size else {}

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: pytree.tree_map(shape_of, value) for name, value in bound.items()}


def _output_names(output: Any) -> list[str] | None:
    """Names from the output's structure, such as ``logits`` for ``{"logits": ...}``."""
    paths = pytree.tree_flatten_with_path(output)[0]
    if not all(isinstance(leaf, Tensor) for _, leaf in paths):
        return None
    names = []
    for keys, _ in paths:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in keys]
        names.append("_".join(part if not part.isdigit() else f"output_{part}" for part in parts) or "output")
    return names


def _first_line(error: BaseException) -> str:
    """The innermost cause in one line: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's progress, warnings and log lines off the user's terminal."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
