"""Quantization in figures: the cost of training, the proof of the deployed file, what it gains, and what it loses.

    python -m benchmarks.quantization [--only step proof speed accuracy]

Each part is a benchmark of its own, with options and explanations: ``quantization_step``, ``quantization_proof``,
``quantization_speed`` and ``quantization_accuracy``, of which one seed is measured here. They run one after another, on
one thread, and the last line is one JSON object with the figures of all. A part that fails says why, and the others run
on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import quantization_accuracy, quantization_proof, quantization_speed, quantization_step
from benchmarks.common import parser_for, quiet, run_parts

PARTS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "step": quantization_step.measure,
    "speed": quantization_speed.measure,
    "proof": quantization_proof.measure,
    "accuracy": quantization_accuracy.measure,
}


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure")
    options = parser.parse_args()
    quiet()
    run_parts("quantization", options.only, PARTS)


if __name__ == "__main__":
    main()
