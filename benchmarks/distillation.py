"""Distillation in figures: what a step, a cache and the kernels cost, and what a student learns.

    python -m benchmarks.distillation [--only step cache kernels accuracy language] [--quick] [--out FOLDER]

Each part is a benchmark of its own, with options and explanations: ``distillation_step``, ``distillation_cache``,
``distillation_kernels``, ``distillation_accuracy`` and ``distillation_language``. They run one after another, on one
thread, and the last line is one JSON object with the figures of all. A part that fails, as where a package is missing,
says why, and the others run on. The last two take an hour each: ``--out`` keeps what is done, and a second call goes on
from there; ``--quick`` trains next to nothing in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import (
    distillation_accuracy,
    distillation_cache,
    distillation_kernels,
    distillation_language,
    distillation_step,
)
from benchmarks.common import add_parts, parser_for, quiet, run_parts

MEASURED: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "step": distillation_step.measure,
    "cache": distillation_cache.measure,
    "kernels": distillation_kernels.measure,
}
TRAINED: Mapping[str, Callable[[Path | None, bool], Mapping[str, Any]]] = {
    "accuracy": distillation_accuracy.measure,
    "language": distillation_language.measure,
}


def main() -> None:
    """Measure, print tables and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    add_parts(parser, [*MEASURED, *TRAINED])
    options = parser.parse_args()
    quiet()
    trained = {part: partial(measure, options.out, options.quick) for part, measure in TRAINED.items()}
    run_parts("distillation", options.only, {**MEASURED, **trained})


if __name__ == "__main__":
    main()
