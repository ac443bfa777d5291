"""Matrix products: linear layers, matmul, einsum."""

from __future__ import annotations

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.rules.base import OperatorCall, rule
from lightning_optim.graph.rules.pointwise import broadcast


@rule("linear")
def multiply_by_weight(call: OperatorCall) -> Axes:
    """Tie the input's last axis to the weight's axis 1 and the bias to axis 0."""
    inputs, weight = call.axes(call["input"]), call.axes(call["weight"])
    call.join(inputs[-1], weight[-1])
    outputs = weight[0] if len(weight) == 2 else None
    if call["bias"] is not None:
        outputs = call.join(outputs, call.axes(call["bias"])[-1])
    return inputs[:-1] + ([outputs] if len(weight) == 2 else [])


@rule("addmm")
def multiply_and_add(call: OperatorCall) -> Axes:
    """Tie the contracted axes, and the summand to the product."""
    left, right = call.axes(call["mat1"]), call.axes(call["mat2"])
    call.join(left[1], right[0])
    rows, columns = call.shape(call["mat1"])[0], call.shape(call["mat2"])[1]
    added = (call.axes(call["self"]), call.shape(call["self"]))
    return broadcast(call, [([left[0], right[1]], (rows, columns)), added], call.output)


@rule("matmul", "mm", "bmm")
def multiply(call: OperatorCall) -> Axes:
    """Tie the contracted axes and, where they are not broadcast, the batch axes."""
    one, other = call["self"], call.get("other", "mat2")
    left, right = call.axes(one), call.axes(other)
    left_shape, right_shape = call.shape(one), call.shape(other)
    call.join(left[-1], right[-2] if len(right) > 1 else right[0])
    kept: Axes = left[-2:-1] + (right[-1:] if len(right) > 1 else [])
    batch = call.output[: len(call.output) - len(kept)]
    operands = [(left[:-2], left_shape[:-2]), (right[:-2], right_shape[:-2])]
    return broadcast(call, operands, batch) + kept


@rule("mv")
def multiply_by_vector(call: OperatorCall) -> Axes:
    """Tie the contracted axis to the vector."""
    matrix = call.axes(call["self"])
    call.join(matrix[1], call.axes(call["vec"])[0])
    return matrix[:1]


@rule("dot", "vdot")
def multiply_vectors(call: OperatorCall) -> Axes:
    """Tie the two vectors."""
    call.join(call.axes(call["self"])[0], call.axes(call.get("tensor", "other"))[0])
    return []


@rule("einsum")
def contract(call: OperatorCall) -> Axes:
    """Tie axes of the same letter; an ellipsis, or a letter twice in one operand, is refused."""
    inputs, _, outputs = call["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    by_letter: dict[str, list[Axis | None]] = {}
    simple = "." not in inputs and all(len(set(term)) == len(term) for term in terms) and "->" in call["equation"]
    for term, operand in zip(terms, call["tensors"], strict=True):
        axes = call.axes(operand)
        if not simple:
            call.freeze(*axes)
            continue
        for letter, axis in zip(term, axes, strict=True):
            by_letter.setdefault(letter, []).append(axis)
    if not simple:
        return [None] * len(call.output)
    joined = {letter: call.join(*axes) for letter, axes in by_letter.items()}
    for letter, axis in joined.items():
        if letter not in outputs and len(by_letter[letter]) == 1:
            call.normalize(axis)
    return [joined[letter] for letter in outputs]
