"""Quantization in figures: the cost of training, the proof of the deployed file, what it gains, and what it loses.

    python -m benchmarks.quantization [--only step proof speed accuracy]

Each part is a benchmark of its own, with options and explanations: ``quantization_step``, ``quantization_proof``,
``quantization_speed`` and ``quantization_accuracy``, of which one seed is measured here. They run one after another, on
one thread, and the last line is one JSON object with the figures of all. A part that fails says why, and the others run
on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks import quantization_accuracy, quantization_proof, quantization_speed, quantization_step
from benchmarks.common import parser_for, quiet, show_figures

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
    figures: dict[str, Any] = {}
    for part in options.only:
        try:
            found = PARTS[part]()
        except Exception as error:  # one part's failure must not lose the others' hours
            found = {f"{part}_failed": f"{type(error).__name__}: {error}"}
        figures |= found
        show_figures(f"Quantization: {part}", found)
    print(json.dumps({"benchmark": "quantization", "torch": torch.__version__, **figures}))


if __name__ == "__main__":
    main()
