"""Description of a finished search as plain data: what was decided, found and picked, and what each decision brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from lightning_optim.nas.result import Evaluation, SearchResult, has_nan, of_highest_fidelity
from lightning_optim.nas.selection import Selection
from lightning_optim.search.space import SearchSpace

_RIDGE = 1.0


def describe_search(space: SearchSpace, selection: Selection, result: SearchResult) -> dict[str, Any]:
    """Return a search as plain primitives, for a file that programs read.

    Architectures are told by the options that matter to them; those that scored NaN are left out. ``effects`` is what
    ``decision_effects`` finds for the first objective.
    """

    def plain(entry: Evaluation) -> dict[str, Any]:
        return {"options": space.options_of(entry.architecture), "values": entry.values, "fidelity": entry.fidelity}

    metrics = {
        name: {"title": entry.title, "bound": entry.bound, "mode": entry.mode}
        for name, entry in selection.metrics.items()
    }
    costs = {
        name: {"title": entry.title, "bound": entry.bound, "mode": "min"} for name, entry in selection.costs.items()
    }
    objective = selection.objectives[0]
    return {
        "num_architectures": space.num_candidates,
        "decisions": {decision.name: list(decision.options) for decision in space.decisions},
        "measures": metrics | costs,
        "objectives": list(selection.objectives),
        "axes": list(selection.front_axes),
        "own": space.options_of(space.default),
        "pick": plain(result.pick),
        "pareto": list(map(plain, result.pareto)),
        "evaluations": [plain(entry) for entry in result.evaluations if not has_nan(entry)],
        "effects": decision_effects(space, result.evaluations, objective),
    }


def decision_effects(
    space: SearchSpace, evaluations: Sequence[Evaluation], measure: str
) -> dict[str, dict[str, float]]:
    """Return what each option adds to a measure, beside the mean over the architectures evaluated.

    An additive model ``y = mean + sum_d effect[d, option_d]`` is fitted by ridge regression (a penalty of 1 on each
    effect, so that an option seen once or twice is not overrated). Inactive decisions add nothing.

    Args:
        space: What was decided.
        evaluations: What was evaluated; of several fidelities, the highest alone counts. NaN is left out.
        measure: Name of the measure.

    Returns:
        Decision -> option -> effect in the unit of the measure; options that were never evaluated are left out.

    Example:
        >>> from lightning_optim.search import Decision
        >>> space = SearchSpace([Decision(name="width", options=("8", "16"), default=1)])
        >>> found = [Evaluation(architecture={"width": w}, score=float(w), cost=1.0) for w in (0, 1) for _ in range(9)]
        >>> {option: round(effect, 2) for option, effect in decision_effects(space, found, "score")["width"].items()}
        {'8': -0.45, '16': 0.45}
    """
    counted = of_highest_fidelity(evaluations)
    values = numpy.array([entry.values[measure] for entry in counted], dtype=float)
    columns = [(decision, option) for decision in space.decisions for option in range(len(decision.options))]
    places = {(decision.name, option): place for place, (decision, option) in enumerate(columns)}
    seen = numpy.zeros((len(counted), len(columns)))
    for row, entry in enumerate(counted):
        for decision in space.active(entry.architecture):
            seen[row, places[decision.name, entry.architecture[decision.name]]] = 1.0
    is_number = numpy.isfinite(values)
    seen, values = seen[is_number], values[is_number]
    if not len(values):
        return {}
    effects = numpy.linalg.solve(seen.T @ seen + _RIDGE * numpy.eye(len(columns)), seen.T @ (values - values.mean()))
    found: dict[str, dict[str, float]] = {}
    for place, (decision, option) in enumerate(columns):
        if seen[:, place].any():
            found.setdefault(decision.name, {})[decision.options[option]] = float(effects[place])
    return found
