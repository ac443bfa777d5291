"""Files of what a search has found: JSON for programs, a plot for people."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_optim.atomic import write_atomic
from lightning_optim.report.figure import can_plot
from lightning_optim.report.search_findings import SearchFindings
from lightning_optim.report.search_plot import plot_front

_INK, _PAPER = "#222222", "#ffffff"


def write_findings(findings: SearchFindings, path: str | Path) -> tuple[Path, ...]:
    """Write ``path`` as JSON and, if matplotlib is installed, the plot of the front beside it as SVG.

    Args:
        findings: Of a search.
        path: The JSON file; the plot has the suffix ``.svg``.

    Returns:
        The files written.
    """
    target = Path(path)
    text = json.dumps(findings.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    written = [write_atomic(target, text.encode())]
    if can_plot():
        svg = plot_front(findings, target.stem).replace("currentColor", _INK)
        svg = svg.replace("<svg ", f'<svg style="background:{_PAPER}" ', 1)
        written.append(write_atomic(target.with_suffix(".svg"), f'<?xml version="1.0"?>\n{svg}'.encode()))
    return tuple(written)
