"""ONNX file of a model: small, equal for equal weights, and never half written."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_optim.atomic import write_atomic
from lightning_optim.errors import ExportError, cause_of
from lightning_optim.export.onnx_file.capture import CaptureInputs, prepare_capture
from lightning_optim.export.onnx_file.lengths import open_lengths
from lightning_optim.export.onnx_file.open_shapes import Dynamic, Example, OpenShapes, open_dims
from lightning_optim.export.onnx_file.pooling import spell_out_pools
from lightning_optim.export.onnx_file.strip import strip_model
from lightning_optim.optional import require
from lightning_optim.surgery.containers import as_plain, find_tensors
from lightning_optim.surgery.torch_private import checkpoints_ignored, drop_guards, pytree

_LARGEST = 2**31 - 1  # protobuf's limit for one message, in bytes


def export_onnx(
    model: nn.Module,
    args: Sequence[Any],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Dynamic | None = None,
    batch: int | None = None,
    opset: int = 21,
) -> Path:
    """Write a model to one ONNX file, without exporter metadata; equal weights give equal bytes.

    The model is exported as a copy in evaluation mode on the CPU; the caller's model stays as it is.

    Args:
        model: Any module that ``torch.export`` can capture.
        args: Example positional inputs; tensors have the batch as dimension 0.
        path: The file to write; an older one is replaced in one step.
        kwargs: Example keyword inputs.
        dynamic: Argument of the model's ``forward`` -> its dimensions that are open beside the batch, each with a
            name, such as ``{"images": {2: "height", 3: "width"}}``.
        batch: The only batch that the file takes; ``None`` opens it: dimension 0 of every input tensor that is as long
            there as the first one.
        opset: ONNX operator set.

    Returns:
        ``path``.

    Raises:
        ExportError: If the model cannot be captured or translated, or is larger than 2 GB, or if ``dynamic`` names what
            there is not.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(nn.Linear(3, 2), (torch.ones(2, 3),), f"{folder}/model.onnx")
        ...     path.stat().st_size < 300
        True
    """
    shapes = OpenShapes(dynamic=dynamic or {}, batch=batch)
    example = next(shapes.batches_of((tuple(args), dict(kwargs or {}))))
    return write_onnx(model, example, path, shapes.dimensions_of(model, example), opset=opset)


def write_onnx(
    model: nn.Module,
    example: Example,
    path: str | Path,
    dimensions: Sequence[Mapping[int, str]],
    *,
    opset: int = 21,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
    name: str | None = None,
) -> Path:
    """Write a model to one ONNX file, as ``export_onnx`` does.

    Args:
        model: Any module that ``torch.export`` can capture.
        example: Its inputs.
        path: The file to write.
        dimensions: Open dimensions of each input tensor, in order, with their names.
        opset: ONNX operator set.
        translations: Custom operator -> onnxscript function, for operators that ONNX does not know.
        name: What errors call the model; without one, its class.

    Raises:
        ExportError: If the model cannot be captured or translated, or is larger than 2 GB.
    """
    require("onnx")
    require("onnxscript")
    name = name or type(model).__name__
    try:
        proto = _translate(prepare_capture(model, *example, open_dims=open_dims(dimensions)), opset, translations)
    except Exception as error:  # an exporter raises whatever its many layers raise
        reason = cause_of(error)
        if "No ONNX function" in reason and torch.__version__ < "2.13":  # such as adaptive_max_pool2d in torch 2.9
            reason += f"; torch 2.13 writes more operators than this torch {torch.__version__}: update torch"
        raise ExportError(f"{name} cannot be exported to ONNX: {reason}{_advice(error)}") from error
    strip_model(proto)
    if proto.ByteSize() > _LARGEST:
        raise ExportError(f"{name} takes {proto.ByteSize() / 1e9:.1f} GB, one ONNX file holds 2 GB")
    return write_atomic(path, proto.SerializeToString(deterministic=True))


def _advice(error: Exception) -> str:
    """What to do where a model's code has taken an open size for a number."""
    found = re.search(r"Constraints violated \((\w+)", str(error))
    if found is None:
        return ""
    if found[1] == "batch":
        return " Its code takes the batch for a number: pass batch= with that number, to fix it in the file"
    return f" Its code takes {found[1]!r} for a number: leave that out of dynamic"


def _translate(capture: CaptureInputs, opset: int, translations: Mapping[Any, Callable[..., Any]] | None) -> Any:
    model, args, kwargs, shapes = capture.model, capture.args, capture.kwargs, capture.shapes
    with silence(), torch.no_grad(), checkpoints_ignored(), open_lengths():
        output = model(*args, **kwargs)
        if as_plain(output) is not output or any(leaf is None for leaf in pytree.tree_leaves(output)):
            _return_plain(model)
        names = _output_names(as_plain(output))
        # Captured here, not by torch.onnx: its fallbacks would fix the batch rather than fail.
        captured = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        drop_guards(captured)
        spell_out_pools(captured)
        program = torch.onnx.export(
            captured,
            dynamic_shapes=shapes,  # names the dynamic dimensions
            dynamo=True,
            opset_version=opset,
            input_names=capture.input_names,
            output_names=names,
            custom_translation_table=dict(translations or {}),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True always gives a program
    return program.model_proto


def _output_names(output: Any) -> list[str] | None:
    """Names from the output's structure, such as ``logits`` for ``{"logits": ...}``."""
    paths = [path for path, _ in find_tensors(output)]
    if len(paths) < len(pytree.tree_leaves(output)):
        return None
    parts = [[f"output_{key}" if str(key).isdigit() else str(key) for key in path] for path in paths]
    return ["_".join(path) or "output" for path in parts]


def _return_plain(model: nn.Module) -> None:
    """Let a model return dictionaries in place of the containers that ``torch.export`` does not know, and no ``None``.

    Where there is one, torch 2.8 writes no file.
    """
    forward = model.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        output = as_plain(forward(*args, **kwargs))
        leaves = pytree.tree_leaves(output)
        return [leaf for leaf in leaves if leaf is not None] if any(leaf is None for leaf in leaves) else output

    model.forward = plain


@contextlib.contextmanager
def silence() -> Iterator[None]:
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
