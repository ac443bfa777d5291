"""Which layers of a network take a statistic over masked channels, and what is left for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from lightning_optim.graph.attributes import calling_module
from lightning_optim.graph.coupling import Coupling, Group, keep_channels
from lightning_optim.graph.labels import Axis
from lightning_optim.graph.masked import removed_labels
from lightning_optim.graph.operators import operator_name
from lightning_optim.surgery.cut import CutPlan
from lightning_optim.surgery.masked_norm import MaskedNorm, Place
from lightning_optim.surgery.select import submodule

_SUMS = ("sum", "norm", "linalg_vector_norm", "_weight_norm", "_weight_norm_interface")
"""What zeros among its operands do not change."""


@final
class MaskedNorms:
    """Masked norms of a network: found once for one choice of channels.

    A layer is one if it has no layers with parameters below it, and one tensor goes in and comes out. A statistic
    outside of such a layer, as in a network's own ``forward``, is known, but nothing can be set in its place.

    Args:
        model: The model that was captured.
        coupling: Its coupling.
        choices: Each group once, with the channels that stay, shape ``[n]``.

    Attributes:
        norms: What is left for each layer, by its plain name.
        competing: Groups over whose removed channels any statistic is taken, each with the operators and their layers.
    """

    def __init__(self, model: nn.Module, coupling: Coupling, choices: Sequence[tuple[Group, Tensor]]) -> None:
        self._model, self._propagation = model, coupling.propagation
        self._removed = removed_labels(coupling.propagation, choices)
        self._plan = keep_channels(choices)
        touched = [node for node in coupling.propagation.program.graph.nodes if self._is_touched(node)]
        found = {name: self._norm(name) for name in dict.fromkeys(calling_module(node.meta) for node in touched)}
        self.norms = {name: norm for name, norm in found.items() if norm is not None}
        self.competing = self._competing(touched, choices)

    def _is_touched(self, node: fx.Node) -> bool:
        """Whether it takes a statistic over removed channels, which zeros in their places would change."""
        if node not in self._propagation.statistics or (self._is_sum(node) and self._reads_parameters(node)):
            return False
        return any(self._places(source) for source in node.all_input_nodes)

    @staticmethod
    def _is_sum(node: fx.Node) -> bool:
        return operator_name(node.target) in _SUMS

    @staticmethod
    def _reads_parameters(node: fx.Node) -> bool:
        return all(source.op == "placeholder" for source in node.all_input_nodes)

    def _competing(
        self, touched: Iterable[fx.Node], choices: Iterable[tuple[Group, Tensor]]
    ) -> dict[Group, list[tuple[str, str]]]:
        found: dict[Group, list[tuple[str, str]]] = {}
        for choice in choices:
            gone = removed_labels(self._propagation, [choice])
            for node in touched:
                if any(_meets(gone, axis) for source in node.all_input_nodes for axis in self._axes(source)):
                    found.setdefault(choice[0], []).append((operator_name(node.target), calling_module(node.meta)))
        return found

    def _norm(self, name: str) -> MaskedNorm | None:
        layer = submodule(self._model, name)
        if not name or any(True for child in layer.children() for _ in child.parameters()):
            return None
        calls = [self._call(nodes) for nodes in self._calls(name)]
        if any(call is None or not _equal(call, calls[0]) for call in calls):
            return None
        plan = self._own_plan(layer, name)
        assert calls[0] is not None
        return None if plan.keys() & dict(layer.named_buffers()).keys() else MaskedNorm(*calls[0], plan)

    def _calls(self, name: str) -> list[list[fx.Node]]:
        """Operators of each call of a layer."""
        calls: dict[str, list[fx.Node]] = {}
        for node in self._propagation.program.graph.nodes:
            if node.op == "call_function" and calling_module(node.meta) == name:
                calls.setdefault([*node.meta["nn_module_stack"]][-1], []).append(node)
        return [*calls.values()]

    def _call(self, nodes: Sequence[fx.Node]) -> tuple[list[Place], list[Place]] | None:
        """What is left of the one input of a call and of its one output."""
        mine = set(nodes)
        sources = {source for node in nodes for source in node.all_input_nodes if source not in mine}
        reads = [source for source in sources if not self._is_tensor_of_model(source)]
        writes = [node for node in nodes if any(user not in mine for user in node.users)]
        if len(reads) != 1 or len(writes) != 1:
            return None
        return self._places(reads[0]), self._places(writes[0])

    def _is_tensor_of_model(self, node: fx.Node) -> bool:
        signature = self._propagation.program.graph_signature
        held = {*signature.inputs_to_parameters, *signature.inputs_to_buffers}
        return node.name in held or node.name in signature.inputs_to_lifted_tensor_constants

    def _own_plan(self, layer: nn.Module, name: str) -> CutPlan:
        """Cuts of a layer's own tensors and attributes; a tensor that is shared may be known by another name."""
        tensors = dict(self._model.named_parameters(remove_duplicate=False))
        by_identity = {id(tensors[key]): cuts for key, cuts in self._plan.items() if key in tensors}
        own = {key: cuts for key, cuts in self._plan.items() if key.startswith(f"{name}.")}
        plan = {key.removeprefix(f"{name}."): cuts for key, cuts in own.items()}
        shared = {key: by_identity[id(held)] for key, held in layer.named_parameters() if id(held) in by_identity}
        return {**plan, **shared}

    def _axes(self, node: fx.Node) -> list[Axis]:
        axes: Any = self._propagation.axes.get(node, [])
        return [axis for axis in axes if axis is not None and not isinstance(axis, list)]

    def _places(self, node: fx.Node) -> list[Place]:
        axes: Any = self._propagation.axes.get(node, [])
        places: list[Place] = []
        for dim, axis in enumerate(axes):
            if axis is None or isinstance(axis, list):
                continue
            mask = self._removed(axis)
            if mask.any():
                places.append((dim, (~mask).nonzero().flatten(), len(mask)))
        return places


def _meets(gone: Any, axis: Axis) -> bool:
    return bool(gone(axis).any())


def _equal(one: Any, other: Any) -> bool:
    """Whether two calls leave the same of their inputs and outputs."""
    if other is None:
        return False
    return all(
        len(mine) == len(theirs)
        and all(a[0] == b[0] and a[2] == b[2] and torch.equal(a[1], b[1]) for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(one, other, strict=True)
    )
