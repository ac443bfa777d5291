"""Fallbacks: what of a network stays in floating point in its file, and whether that may be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from lightning_optim.errors import ExportError
from lightning_optim.export.onnx_file.kernels import Kernels
from lightning_optim.export.runtime.base import Runtime
from lightning_optim.quantization.simulation.operators import INTEGER_ROLES, Role
from lightning_optim.quantization.simulation.placement import EXCLUDED
from lightning_optim.quantization.simulation.plan import BEFORE_SOFTMAX, MASKED, UNROUNDED, Operator
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.table import say_share

Fallbacks: TypeAlias = Literal["named", "refused"] | Sequence[str]
"""Whether what has no integer kernel may stay in floating point: all of it, nothing, or the kernels that are listed."""

FEW = 0.9  # share of multiply-accumulates in integers below which a warning says so
_LISTED = 3  # operators that a message names

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})  # one operator, a kernel for each of its layers
_MOST_LAYERS = 100
# Operator that stays in floating point as a whole -> how many kernels of each role it holds: attention has two matrix
# products, and adds a mask.
_FLOAT_PARTS: dict[str, dict[Role, int]] = {"scaled_dot_product_attention": {Role.MATMUL: 2, Role.ADD: 1}}


def check_fallbacks(fallbacks: object) -> None:
    """Refuse what says nothing about fallbacks.

    Raises:
        ValueError: Saying what was needed.
    """
    is_list = isinstance(fallbacks, Sequence) and not isinstance(fallbacks, str)
    if fallbacks in ("named", "refused") or (is_list and all(isinstance(each, str) for each in fallbacks)):  # type: ignore[attr-defined]
        return
    raise ValueError(
        "fallbacks must be 'named', 'refused', or a sequence of the kernels that may stay in floating point, such as "
        f"['Add'], got {fallbacks!r}"
    )


def find_fallbacks(simulator: Simulator, runtime: Runtime, kernels: Kernels) -> dict[str, str]:
    """Return what stays in floating point: key of an operator, or a kernel that the runtime has added -> why.

    Operators are named that multiply matrices, and those of a kind that integer kernels serve elsewhere.
    """
    operators = operators_of(simulator)
    notes = {key: each.note or runtime.lacks.get(each.role, "") for key, each in operators.items()}
    named = {key: note for key, note in notes.items() if note and _counts(operators[key])}
    left = _unexpected(kernels, runtime, operators)
    why = "computed in floating point by the runtime"
    accounted = {role for key in named for role in (operators[key].role, *_FLOAT_PARTS.get(operators[key].name, ()))}
    for roles, names in runtime.promised.items():
        if not accounted & set(roles):
            named |= {f"{left[name]} {name}": why for name in names if name in left}
        if not any(name in kernels.floating for name in names):  # the runtime found integers where the plan has none
            named = {
                key: note for key, note in named.items() if key not in operators or operators[key].role not in roles
            }
    return named


def check_kernels(kernels: Kernels, runtime: Runtime, simulator: Simulator, fallbacks: Fallbacks) -> None:
    """Refuse a file with kernels in floating point that nobody has asked for.

    Raises:
        ExportError: Naming the kernels, and the operators that they compute.
    """
    if fallbacks == "named":
        return
    allowed = () if fallbacks == "refused" else fallbacks
    floating = _unexpected(kernels, runtime, operators_of(simulator), allowed)
    if not floating:
        return
    listed = ", ".join(f"{count} {name}" for name, count in sorted(floating.items()))
    whole = sorted({*floating, *allowed})
    raise ExportError(
        f"{listed} would run in floating point ({_reasons(find_fallbacks(simulator, runtime, kernels))}); allow that "
        f"with fallbacks={whole}, or all of it with fallbacks='named'"
    )


def check_share(share: float, fallbacks: Mapping[str, str], simulator: Simulator, runtime: Runtime) -> None:
    """Warn of a file that computes little in integers.

    Args:
        share: Share of the multiply-accumulates in integers.
        fallbacks: What stays in floating point -> why.
        simulator: Ranges and quantizers of the network.
        runtime: The runtime of the file.

    Raises:
        ExportError: If nothing is multiplied in integers, unless there are ``Unquantized`` activations: then integer
            weights alone were asked for.
    """
    operators = operators_of(simulator)
    is_unrounded = any(each.note == UNROUNDED for each in operators.values())
    if share >= FEW or (is_unrounded and not any(each.is_integer for each in operators.values())):
        return
    total = sum(each.macs for each in operators.values())
    macs = {key: operators[key].macs if key in operators else 0 for key in fallbacks}
    named = {key: fallbacks[key] for key in sorted(macs, key=lambda key: -macs[key])}
    if not share and not is_unrounded:
        raise ExportError(
            f"no multiply-accumulate would run in integers in {type(runtime).__name__} ({_reasons(named)}); write the "
            "network in floating point, with lightning_optim.export.export_onnx"
        )
    named = {f"{key} with {say_share(macs[key] / total)} of them" if macs[key] else key: named[key] for key in named}
    warnings.warn(
        f"{say_share(share)} of the multiply-accumulates run in integers in {type(runtime).__name__}; in floating "
        f"point are {_reasons(named)}",
        stacklevel=4,
    )


def operators_of(simulator: Simulator) -> dict[str, Operator]:
    """Operators by key; those beside unquantized activations have a note that says so."""
    operators = dict(simulator.plan.operators) if simulator.plan is not None else {}
    for key, operator in operators.items():
        if operator.is_integer and simulator.activations.quantizer_of(key).scheme.is_exact:
            operators[key] = replace(operator, note=UNROUNDED)
    return operators


def planned_share(simulator: Simulator, runtime: Runtime) -> float:
    """Return the share of the multiply-accumulates that the plan, and what the runtime lacks, leaves to integers."""
    operators = [each for each in operators_of(simulator).values() if each.macs]
    integer = sum(each.macs for each in operators if each.is_integer and each.role not in runtime.lacks)
    return integer / sum(each.macs for each in operators) if operators else 1.0


def _counts(operator: Operator) -> bool:
    return operator.role in INTEGER_ROLES or operator.macs > 0


def _unexpected(
    kernels: Kernels, runtime: Runtime, operators: Mapping[str, Operator], allowed: Sequence[str] = ()
) -> dict[str, int]:
    """Kernels in floating point, where there are more of a role than what is to stay so by the user's own choice."""
    floating: dict[str, int] = {}
    for roles, names in runtime.promised.items():
        chosen = sum(_num_float(each, role) for each in operators.values() for role in roles)
        found = {name: kernels.floating[name] for name in names if name in kernels.floating and name not in allowed}
        if sum(found.values()) > chosen:
            floating.update(found)
    return floating


def _num_float(operator: Operator, role: Role) -> int:
    """How many kernels of a role an operator may leave in floating point: the user or ``_FLOAT_PARTS`` says so."""
    parts = _FLOAT_PARTS.get(operator.name, {}).get(role, 0)
    is_chosen = operator.note in (EXCLUDED, BEFORE_SOFTMAX, MASKED, UNROUNDED) and operator.role is role
    return parts + (_MOST_LAYERS if operator.name in _RECURRENT else 1) * is_chosen


def _reasons(fallbacks: Mapping[str, str]) -> str:
    listed = [f"{key}: {why}" for key, why in list(fallbacks.items())[:_LISTED]]
    more = len(fallbacks) - len(listed)
    return "; ".join([*listed, *([f"and {more} more"] if more > 0 else [])])
