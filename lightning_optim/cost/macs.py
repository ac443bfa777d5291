"""MACs: the number of multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import fx, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.axis_widths import AxisWidths, is_tensor
from lightning_optim.cost.base import Cost, Subject
from lightning_optim.cost.count import count_macs
from lightning_optim.cost.prices import Prices, Product, Term, Width
from lightning_optim.graph.operators import OperatorKind, kind_of, operator_name
from lightning_optim.surgery.inputs import Inputs


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class MACs(Cost):
    """MACs: multiply-accumulates of one forward pass over the example; FLOPs are twice as many.

    Convolutions, linears, matrix products and attention follow the channel counts. What else ``count_macs`` counts,
    for example recurrent layers, is taken as fixed.
    """

    @override
    def prices(self, subject: Subject) -> Prices:
        axis_widths = AxisWidths(subject.coupling, subject.pools)
        terms: list[Term] = []
        for node in subject.coupling.propagation.program.graph.nodes:
            if node.op == "call_function" and is_tensor(node):
                terms += _terms(node, axis_widths)
        counted = sum(term.at(axis_widths.sizes) for term in terms)
        rest = count_macs(subject.network, subject.args, subject.kwargs) - counted
        if rest > 0:
            terms.append(Product("other operators", rest, ()))
        return Prices("MACs", axis_widths.pools, tuple(terms))

    @override
    def measure(self, network: nn.Module, inputs: Inputs) -> float:
        return float(count_macs(network, inputs.args, inputs.kwargs))


def _terms(node: fx.Node, axis_widths: AxisWidths) -> list[Term]:
    kind = kind_of(operator_name(node.target))
    operands = [operand for operand in (*node.args, *node.kwargs.values()) if is_tensor(operand)]
    widths = [axis_widths.of_value(operand) for operand in operands]  # type: ignore[arg-type]  # nodes, all of them
    products: list[tuple[Width, ...]] = []
    if kind is OperatorKind.CONVOLUTION:
        products = [(*widths[1], *_around(axis_widths.of_value(node)))]
    elif kind is OperatorKind.TRANSPOSED_CONVOLUTION:
        products = [(*widths[1], *_around(widths[0]))]
    elif kind is OperatorKind.LINEAR:
        products = [(*widths[1], *widths[0][:-1])]
    elif kind is OperatorKind.MATRIX_PRODUCT:
        products = [(*axis_widths.of_value(node), widths[0][-1])]
    elif kind is OperatorKind.ADDED_PRODUCT:
        products = [(*axis_widths.of_value(node), widths[1][-1])]
    elif kind is OperatorKind.ATTENTION:
        query, key, value = widths[:3]
        products = [(*query[:-1], key[-2], width) for width in (query[-1], value[-1])]
    return [Product(node.name, 1.0, product) for product in products]


def _around(widths: tuple[Width, ...]) -> tuple[Width, ...]:
    """Batch and positions of a convolution's input or output, without its channels."""
    return (widths[0], *widths[2:])
