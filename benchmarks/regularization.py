"""Regularization in figures: what a step costs, what each regularizer brings, and what prepares pruning.

    python -m benchmarks.regularization [--only step accuracy pruning] [--quick] [--out FOLDER]

Each part is a benchmark of its own, with options and explanations: ``regularization_step``, ``regularization_accuracy``
and ``regularization_pruning``. They run one after another, on one thread, and the last line is one JSON object with the
figures of all. A part that fails says why, and the others run on. The last two take half an hour together: ``--out``
keeps what is done, and a second call goes on from there; ``--quick`` trains next to nothing in them.
"""

from __future__ import annotations

from functools import partial

from benchmarks import regularization_accuracy, regularization_pruning, regularization_step
from benchmarks.common import add_parts, parser_for, quiet, run_parts


def main() -> None:
    """Measure, print tables and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    add_parts(parser, ["step", "accuracy", "pruning"])
    options = parser.parse_args()
    quiet()
    parts = {
        "step": regularization_step.measure,
        "accuracy": partial(regularization_accuracy.measure, options.out, options.quick),
        "pruning": partial(regularization_pruning.measure, options.out, options.quick),
    }
    run_parts("regularization", options.only, parts)


if __name__ == "__main__":
    main()
