"""What do the strategies find, on tables of spaces whose every candidate has been trained?

    python -m benchmarks.search --only tables --tables FOLDER [--devices pixel3 gold_6240] [--quick] [--out FOLDER]

Each ``.npz`` of the folder is a table, read without pickle: ``cell`` has one digit a decision, ``val_accuracy_200`` the
accuracy in percent; ``val_accuracy_12``, ``train_seconds_200`` and ``latency_ms__DEVICE`` may be there. Digits are
names of options and no numbers. What needs a column that is not there is not measured.

- ``evaluations_to_top_permille``: until one of the best 0.1 % is evaluated, median of 60 seeds, at most 300. -
``protocol_accuracy``: the accuracy after 200 epochs of the pick, found in 12,000 seconds of trainings of 12 epochs
(that of
  NAS-Bench-201: Dong and Yang, 2020; arXiv:2001.00326, section 4), mean of 200 seeds. A training of 12 epochs costs
  12/200 of ``train_seconds_200``; the evaluation that would exceed the budget does not count. The pick is made from
  values after 12 epochs alone: the best one, or, for the surrogate, the best after smoothing.
- ``hypervolume_200``: of accuracy and latency after 200 evaluations, over that of the true front; above 85 % and below
the
  largest latency; mean of 20 seeds, of the device where it is lowest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from benchmarks.study import Kept
from lightning_optim.search import (
    Decision,
    Evolution,
    LocalSearch,
    OptunaSampler,
    PairwiseSurrogate,
    ParetoEvolution,
    RandomSearch,
    Reinforce,
    SearchSpace,
    Strategy,
    hypervolume,
    smoothed_scores,
)

Floats = NDArray[np.float64]

DEVICES = ("pixel3", "gold_6240", "1080ti_1")
OURS = "pairwise_surrogate"
STRATEGIES: dict[str, Strategy] = {
    "random": RandomSearch(),
    "evolution": Evolution(),
    "local_search": LocalSearch(),
    "reinforce": Reinforce(),
    "pareto_evolution": ParetoEvolution(),
    OURS: PairwiseSurrogate(),
    "optuna_tpe": OptunaSampler(),
}
IN_PROTOCOL = ("random", "evolution", "local_search", "reinforce", OURS)
OF_SEVERAL = ("random", "pareto_evolution", OURS)
BUDGET, LIMIT, TOP = 12_000.0, 300, 0.001
NUM_IN_FRONT, ACCURACY_REFERENCE = 200, 85.0


@final
class TrainedSpace:
    """Table of a space whose every candidate has been trained.

    Args:
        path: The ``.npz``.

    Raises:
        ValueError: If it holds Python objects, or lacks ``cell`` or ``val_accuracy_200``.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._columns: dict[str, NDArray[Any]] = {}
        with np.load(path, allow_pickle=False) as table:
            for key in table.files:
                try:
                    self._columns[key] = table[key]
                except ValueError as error:
                    raise ValueError(
                        f"{path}: {key!r} must be plain numbers or text, and holds Python objects, which are not read: "
                        "save it with a plain dtype"
                    ) from error
        for key in ("cell", "val_accuracy_200"):
            if key not in self._columns:
                raise ValueError(f"{path}: a table needs a column {key!r}, and has {sorted(self._columns)}")
        digits = np.array([[int(digit) for digit in str(cell)] for cell in self._columns["cell"]])
        self.rows = {tuple(row): index for index, row in enumerate(digits.tolist())}
        self.space = SearchSpace(
            [
                Decision(name=f"edge{place}", options=tuple(f"option {each}" for each in range(count)), default=0)
                for place, count in enumerate((digits.max(axis=0) + 1).tolist())
            ]
        )
        self.accuracy = self.column("val_accuracy_200")

    def lacks(self, *columns: str) -> str | None:
        """What to say of a figure that needs columns which are not there; ``None`` if all are."""
        absent = [column for column in columns if column not in self._columns]
        return f"not measured: no column {', '.join(absent)}" if absent else None

    def column(self, name: str) -> Floats:
        """A column as numbers."""
        return np.asarray(self._columns[name], dtype=float)

    def searched(self, strategy: Strategy, seed: int, scores: Floats, go_on: Callable[[list[int]], bool]) -> list[int]:
        """Rows that a strategy evaluates, in order, until it is told to stop or the space is used up.

        Args:
            strategy: The strategy.
            seed: Of the search.
            scores: ``[rows, objectives]``, higher is better.
            go_on: Asked after each evaluation, before its scores are told, with all rows so far.
        """
        search, found = strategy.start(self.space, seed, num_scores=scores.shape[1]), []
        while (proposal := search.ask()) is not None:
            index = self.rows.get(tuple(proposal.candidate.values()))
            if index is None:  # a candidate that the table leaves out
                search.tell(proposal, None)
                continue
            found.append(index)
            if not go_on(found):
                break
            search.tell(proposal, [float(score) for score in scores[index]])
        return found


def evaluations_to_top(table: TrainedSpace, strategy: Strategy, seed: int) -> int:
    """Evaluations until one of the best 0.1 %, ``LIMIT + 1`` if it takes more than the limit."""
    least = np.sort(table.accuracy)[-max(1, round(TOP * len(table.accuracy)))]

    def go_on(found: list[int]) -> bool:
        return table.accuracy[found[-1]] < least and len(found) < LIMIT

    found = table.searched(strategy, seed, table.accuracy[:, None], go_on)
    return len(found) if table.accuracy[found[-1]] >= least else LIMIT + 1


def protocol(table: TrainedSpace, strategy: Strategy, seed: int) -> tuple[float, int]:
    """Accuracy after 200 epochs of the pick, and how many evaluations the budget was worth."""
    seen, seconds = table.column("val_accuracy_12"), table.column("train_seconds_200") * 12 / 200
    spent = 0.0

    def go_on(found: list[int]) -> bool:
        nonlocal spent
        spent += seconds[found[-1]]
        return spent <= BUDGET

    found = table.searched(strategy, seed, seen[:, None], go_on)
    found = found[:-1] if spent > BUDGET else found
    values: Sequence[float] = [float(seen[index]) for index in found]
    if strategy == STRATEGIES[OURS]:
        candidates = dict(enumerate(table.rows))
        names = [decision.name for decision in table.space.decisions]
        picked = [dict(zip(names, candidates[index], strict=True)) for index in found]
        values = smoothed_scores(table.space, picked, values)
    return float(table.accuracy[found[int(np.argmax(values))]]), len(found)


def hypervolume_share(table: TrainedSpace, device: str, strategy: Strategy, seed: int) -> float:
    """Hypervolume after 200 evaluations over that of the true front."""
    latency = table.column(f"latency_ms__{device}")
    scores, reference = np.stack([table.accuracy, -latency], axis=1), (ACCURACY_REFERENCE, -float(latency.max()))
    found = table.searched(strategy, seed, scores, lambda found: len(found) < NUM_IN_FRONT)
    return hypervolume(scores[found], reference) / hypervolume(scores, reference)


def measure(folder: Path | None, devices: Sequence[str], out: Path | None, quick: bool) -> Mapping[str, Any]:
    """Figures of every table of a folder; the plain names hold those of the table, and of the device, that is worst.

    Raises:
        ValueError: If there is no folder, or no table in it.
    """
    paths = sorted(folder.glob("*.npz")) if folder is not None else []
    if not paths:
        raise ValueError(f"tables need a folder of .npz files: give one with --tables, got {folder}")
    figures: dict[str, Any] = {}
    for table in map(TrainedSpace, paths):
        kept = Kept(None if out is None else out / f"tables_{table.name}.json", {"quick": quick})
        figures |= {f"{table.name}/{key}": value for key, value in _of_table(table, devices, kept, quick).items()}
    worst = {"evaluations_to_top_permille": max, "protocol_accuracy": min, "reinforce_accuracy": min}
    found = {name: _numbers(figures, f"/{name}") for name in worst}
    found["hypervolume_200"] = _numbers(figures, "/hypervolume_200/")
    totals = {name: worst.get(name, min)(numbers) if numbers else None for name, numbers in found.items()}
    return {**figures, **totals}


def _numbers(figures: Mapping[str, Any], part: str) -> list[float]:
    """Our figures of one kind: those that end with the kind, or with a device after it."""
    is_own = [key for key in figures if key.endswith(part) or (part.endswith("/") and part in key and "@" not in key)]
    return [figures[key] for key in is_own if not isinstance(figures[key], str)]


def _of_table(table: TrainedSpace, devices: Sequence[str], kept: Kept, quick: bool) -> Mapping[str, Any]:
    seeds = partial(_seeds, quick=quick)
    figures: dict[str, Any] = {}
    for name, strategy in STRATEGIES.items():
        counts = kept.once(f"top/{name}", partial(_each, seeds(60), partial(evaluations_to_top, table, strategy)))
        key = "evaluations_to_top_permille" if name == OURS else f"evaluations_to_top_permille@{name}"
        figures[key] = statistics.median(counts)
    lacks = table.lacks("val_accuracy_12", "train_seconds_200")
    for name in IN_PROTOCOL:
        own = {OURS: "protocol_accuracy", "reinforce": "reinforce_accuracy"}
        key = own.get(name, f"protocol_accuracy@{name}")
        if lacks is not None:
            figures[key] = lacks
            continue
        pairs = kept.once(f"protocol/{name}", partial(_each, seeds(200), partial(protocol, table, STRATEGIES[name])))
        figures |= _spread(key, [accuracy for accuracy, _ in pairs])
        figures[f"{key}:evaluations"] = statistics.mean(count for _, count in pairs)
    for device in devices:
        lacks = table.lacks(f"latency_ms__{device}")
        for name in OF_SEVERAL:
            key = f"hypervolume_200/{device}" + ("" if name == OURS else f"@{name}")
            share = partial(hypervolume_share, table, device, STRATEGIES[name])
            once = partial(kept.once, f"hypervolume/{device}/{name}", partial(_each, seeds(20), share))
            figures[key] = statistics.mean(once()) if lacks is None else lacks
    return figures


def _spread(key: str, values: Sequence[float]) -> Mapping[str, float]:
    deviation = statistics.pstdev(values)
    return {
        key: statistics.mean(values),
        f"{key}:deviation": deviation,
        f"{key}:standard_error": deviation / len(values) ** 0.5,
    }


def _each(seeds: Sequence[int], once: Callable[[int], Any]) -> list[Any]:
    return [once(seed) for seed in seeds]


def _seeds(count: int, *, quick: bool) -> range:
    return range(max(1, count // 20) if quick else count)
