"""Capture of a network: model and example inputs -> ATen graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.fx.config as tracing
from torch import Tensor, nn

from lightning_optim.errors import CaptureError, reason_of
from lightning_optim.graph.shape_model import ShapeModel
from lightning_optim.surgery.attention import free_heads, plain_attentions
from lightning_optim.surgery.compilation import without_compilation
from lightning_optim.surgery.containers import as_plain, tensors_of
from lightning_optim.surgery.copies import eval_view
from lightning_optim.surgery.layer_kinds import Conv1D, input_first_weights
from lightning_optim.surgery.masked_norm import drop_masked_norms
from lightning_optim.surgery.select import plain_name
from lightning_optim.surgery.torch_private import causal_masks_unrecognized, checkpoints_ignored, number_parts, pytree

_KNOWN = (Tensor, bool, int, float, str)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """Captured network: its graph, and what the graph does not say of it.

    Args:
        program: The forward pass in evaluation mode as ATen operators; names in its signature are the model's.
        attributes: Integer attributes (``num_heads`` and the like) by plain module name: a graph holds the numbers
            that they became, but not their names.
        shape_model: Tells what cuts the model's code can follow; ``None`` where nothing is known of its code.
        input_first: Names of the weights that are ``[in, out, ...]``.
    """

    program: torch.export.ExportedProgram
    attributes: Mapping[str, Mapping[str, int]]
    shape_model: ShapeModel | None = None
    input_first: frozenset[str] = frozenset()


def capture_network(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Captured:
    """Export the forward pass in evaluation mode as a graph of ATen operators.

    Args:
        model: The model; left untouched, a copy is exported.
        args: Example positional inputs. A batch of two or more keeps the batch axis apart from axes of length one.
        kwargs: Example keyword inputs.

    Raises:
        CaptureError: If the model cannot be copied or exported.

    Example:
        >>> captured = capture_network(nn.Linear(3, 2), (torch.ones(2, 3),))
        >>> [str(node.target) for node in captured.program.graph.nodes if node.op == "call_function"]
        ['aten.linear.default']
    """
    try:
        shadow = without_compilation(eval_view(model))
        drop_masked_norms(shadow)  # what has rules are the layers as they are written
        for attention in plain_attentions(shadow):
            free_heads(attention)  # as it would be after a cut
        with _quiet(), _plain_outputs(shadow), torch.enable_grad(), checkpoints_ignored(), causal_masks_unrecognized():
            program = torch.export.export(shadow, args, dict(kwargs or {}), strict=False)
    except Exception as error:
        reason = reason_of(error)
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__} with these inputs: {reason}; "
            "name a part of it that can be exported as the network, or choose a technique that needs no graph"
        ) from error
    shape_model = ShapeModel(shadow, args, dict(kwargs or {}))
    return Captured(program, _integer_attributes(shadow), shape_model, input_first_weights(shadow))


@contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let a model return its tensors in containers that the exporter knows, and leave out what holds none.

    An object in which no tensor is seen, such as a cache of keys and values, is the model's own affair.
    """
    forward, own = model.forward, vars(model).get("forward")

    @functools.wraps(forward)  # a function, whose code the exporter asks for
    def opened(*args: Any, **kwargs: Any) -> Any:
        outputs = as_plain(forward(*args, **kwargs))
        if not tensors_of(outputs):
            return outputs  # which the exporter refuses by its name
        return pytree.tree_map(lambda leaf: leaf if isinstance(leaf, _KNOWN) else None, outputs)

    number_parts()
    vars(model)["forward"] = opened
    try:
        yield
    finally:
        del vars(model)["forward"]
        if own is not None:
            vars(model)["forward"] = own


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's warnings, and let attention run as many operators (one fused kernel shows no structure).

    The exporter does not record where in the source an operator was called: nobody reads it, and it takes a tenth of
    the time of an export.
    """
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    was_untold = vars(tracing).get("do_not_emit_stack_traces", False)
    torch.backends.mha.set_fastpath_enabled(False)
    tracing.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
        tracing.do_not_emit_stack_traces = was_untold


def _integer_attributes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Integers by module; none of ``Conv1D``, which a cut keeps true: a square one's would be taken for its input's."""
    return {
        plain_name(name): {key: value for key, value in vars(module).items() if type(value) is int}
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, Conv1D)
    }
