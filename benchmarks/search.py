"""Architecture search in figures: strategies on tables, supernets, and searches that are killed.

    python -m benchmarks.search --tables FOLDER [--only tables resume] [--devices ...] [--quick] [--out FOLDER]

Each part is a function of a module with explanations: ``search_tables``, ``search_resume``, ``search_supernet``
(``supernet``, ``steps``), ``search_gradient`` (``gradient``, ``collapse``) and ``search_guard``. They run one after
another, and the last line is one JSON object with the figures of all. A part that fails says why, and others run on.
Those of supernets train for an hour and more: ``--out`` keeps what is done, and a second call goes on from there.
``--quick`` takes a twentieth of the seeds of ``tables``; the other parts know no less.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import search_gradient, search_guard, search_resume, search_supernet, search_tables
from benchmarks.common import add_parts, parser_for, quiet, run_parts

# A part takes the options and returns its figures.
PARTS: dict[str, Callable[[Namespace], Mapping[str, Any]]] = {
    "tables": lambda options: search_tables.measure(options.tables, options.devices, options.out, options.quick),
    "resume": lambda options: search_resume.measure(),
    "supernet": lambda options: search_supernet.ranking(_folder(options)),
    "steps": lambda options: search_supernet.step_ratios(),
    "gradient": lambda options: search_gradient.gradient_pick(_folder(options)),
    "collapse": lambda options: search_gradient.collapse(),
    "guard": lambda options: search_guard.guard(),
}


def _folder(options: Namespace) -> Path:
    return Path(tempfile.mkdtemp()) if options.out is None else options.out


def main() -> None:
    """Measure, print tables and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    add_parts(parser, list(PARTS))
    parser.add_argument("--tables", type=Path, help="folder of .npz tables")
    parser.add_argument("--devices", nargs="+", default=list(search_tables.DEVICES), help="whose latency counts")
    options = parser.parse_args()
    quiet()
    run_parts("search", options.only, {name: partial(part, options) for name, part in PARTS.items()})


if __name__ == "__main__":
    main()
