"""Masked evaluation: the full-size graph with channels taken out exactly, which a cut model must reproduce."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx, nn

from lightning_optim.errors import ShrinkError
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.operators import OperatorKind, kind_of, operator_name
from lightning_optim.graph.propagate import Propagation
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.torch_private import pytree


def run_masked(
    model: nn.Module,
    coupling: Coupling,
    choices: Iterable[tuple[Group, Tensor]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """Evaluate a model at full size as if only some channels were there.

    Every parameter slice of a removed channel is zeroed, in its producer (weight, bias, scale and shift) and in
    its consumer. The consumer's zeros alone make the removal exact, whatever an activation makes of the zeros
    before it (``sigmoid(0)`` is no zero). An operator that takes a statistic over channels (layer norm, group
    norm, a mean over channels) has no weights to zero: it is evaluated on the channels that stay, and its
    output is put back in place. Shapes stay as they are, so nothing that a cut may get wrong takes part.

    Args:
        model: The model that was captured, with its present weights; left untouched.
        coupling: Its coupling.
        choices: Each group once, with the channels that stay, shape ``[n]``.
        args: Positional inputs, of the shapes that were captured.
        kwargs: Keyword inputs, in the order that was captured.

    Returns:
        Every output tensor, in the order of the exported program.

    Raises:
        ShrinkError: If the model is no longer the one that was captured.
    """
    propagation = coupling.propagation
    removed = removed_labels(propagation, choices)
    tensors = masked_tensors(model, propagation, removed)
    inputs = iter(pytree.tree_leaves((args, dict(kwargs or {}))))
    signature = propagation.program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = propagation.program.constants
    values = []
    for node in propagation.program.graph.nodes:
        if node.op != "placeholder":
            break
        if node.name in names:
            values.append(tensors[names[node.name]])
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            values.append(constants[signature.inputs_to_lifted_tensor_constants[node.name]])
        else:
            values.append(next(inputs))
    with torch.no_grad():
        outputs = _MaskedInterpreter(propagation, removed).run(*values)
    return tensors_of(outputs)


def removed_labels(propagation: Propagation, choices: Iterable[tuple[Group, Tensor]]) -> Callable[[Axis], Tensor]:
    """Return a function from labels to a mask of those that go."""
    gone: list[Axis] = [np.empty(0, dtype=np.int64)]
    for group, channels in choices:
        first = group.members[0]
        axis = propagation.tensors[first.name][first.dim]
        assert axis is not None
        goes = torch.ones(group.size, dtype=torch.bool)
        goes[channels.cpu()] = False
        gone.append(propagation.labels.find(axis[first.index[goes, 0].numpy()]))
    roots = np.concatenate(gone)
    return lambda axis: torch.from_numpy(np.isin(propagation.labels.find(axis), roots))


def masked_tensors(model: nn.Module, propagation: Propagation, removed: Callable[[Axis], Tensor]) -> dict[str, Tensor]:
    """Parameters with the slices of removed channels zeroed, and buffers as they are."""
    tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        tensors[name] = parameter.detach()
    for name, axes in propagation.tensors.items():
        held = tensors.get(name)
        lengths = {dim: len(axis) for dim, axis in enumerate(axes) if axis is not None}
        if held is None or any(held.shape[dim] != length for dim, length in lengths.items()):
            raise ShrinkError(f"{name!r} is not what it was when the model was captured; capture and couple it again")
        for dim, axis in enumerate(axes):
            if axis is not None and name in parameters and (mask := removed(axis)).any():
                held = held.index_fill(dim, mask.nonzero().flatten().to(held.device), 0)
        tensors[name] = held
    return tensors


@final
class _MaskedInterpreter(fx.Interpreter):
    """Interpreter of the graph; operators that take a statistic over labels see the kept positions alone."""

    def __init__(self, propagation: Propagation, removed: Callable[[Axis], Tensor]) -> None:
        super().__init__(propagation.program.graph_module)
        self._propagation, self._removed = propagation, removed

    def run_node(self, n: fx.Node) -> Any:
        """Run one node of the graph."""
        if n not in self._propagation.statistics:
            return super().run_node(n)
        target: Any = n.target
        args: list[Any] = [fx.node.map_arg(argument, self._gathered) for argument in n.args]
        kwargs: dict[str, Any] = {key: fx.node.map_arg(argument, self._gathered) for key, argument in n.kwargs.items()}
        if kind_of(operator_name(target)) is OperatorKind.LAYER_NORM:
            args[1] = list(args[0].shape[-len(args[1]) :])
        result = target(*args, **kwargs)
        return self._scattered(result, self._propagation.axes[n], n.meta["val"].shape)

    def _kept(self, axes: Axes) -> dict[int, Tensor]:
        masks = {dim: self._removed(axis) for dim, axis in enumerate(axes) if axis is not None}
        return {dim: (~mask).nonzero().flatten() for dim, mask in masks.items() if mask.any()}

    def _gathered(self, node: fx.Node) -> Any:
        value = self.env[node]
        for dim, kept in self._kept(self._propagation.axes.get(node, [])).items():
            value = value.index_select(dim, kept.to(value.device))
        return value

    def _scattered(self, value: Tensor, axes: Axes, shape: torch.Size) -> Tensor:
        for dim, kept in self._kept(axes).items():
            full = value.new_zeros((*value.shape[:dim], shape[dim], *value.shape[dim + 1 :]))
            value = full.index_copy(dim, kept.to(value.device), value)
        return value
