"""Recurrent layers: a unit goes with all of its gates, in every layer and direction."""

# H hidden units, G gates, D directions

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from lightning_optim.graph.labels import Axis
from lightning_optim.graph.operators import operator_name
from lightning_optim.graph.rules.base import OperatorCall, Result, fixed, rule


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recur(call: OperatorCall) -> Result:
    """Tie G * H rows and H columns of all weights, the states, and D * H outputs; projected states are left alone.

    Every layer and direction has the one number of units that the module was given.
    """
    inputs, parameters = call.axes(call["input"]), [call.axes(held) for held in call["params"]]
    directions = 1 + int(call["bidirectional"])
    each = len(parameters) // (directions * call["num_layers"])
    call.freeze(*inputs[:-1])
    if each not in (2, 4):
        call.freeze(*inputs, *(axis for axes in parameters for axis in axes))
        return [fixed(len(shape)) for shape in call.outputs]
    units, read = parameters[1][1], inputs[-1]
    outputs = _repeated(units, directions)
    for number in range(0, len(parameters), each):
        if number == directions * each:
            read = outputs
        _tie_layer(call, units, read, [axis for axes in parameters[number : number + each] for axis in axes])
    _tie_states(call, units)
    # Ranks are the graph's: torch 2.9 notes the states of an LSTM with an axis too many.
    return [[*fixed(len(shape) - 1), last] for shape, last in zip(call.outputs, (outputs, units, units), strict=False)]


def _tie_layer(call: OperatorCall, units: Axis | None, read: Axis | None, axes: list[Axis | None]) -> None:
    """Weights of inputs and of states, two axes each, then two biases or none."""
    call.join(read, axes[1])
    call.join(units, axes[3])
    for rows in (axes[0], axes[2], *axes[4:]):
        call.join(_repeated(units, 0 if rows is None or units is None else len(rows) // len(units)), rows)


def _tie_states(call: OperatorCall, units: Axis | None) -> None:
    """States that start at zero are made by the layer, as long as it needs them."""
    given: Any = call["hx"]
    for state in given if isinstance(given, list | tuple) else [given]:
        if not (isinstance(state, fx.Node) and operator_name(state.target) == "zeros"):
            call.join(units, call.axes(state)[-1])


def _repeated(axis: Axis | None, times: int) -> Axis | None:
    return None if axis is None else np.tile(axis, times)
