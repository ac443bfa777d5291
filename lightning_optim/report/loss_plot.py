"""Plot of the losses that every stage was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_optim.report.figure import DASHES, INK, SERIES, draw_figure
from lightning_optim.report.loss_curves import TASK, TOTAL, LossCurves
from lightning_optim.report.result import Report

LOSS_LEGEND = (
    "task: the module's own loss. distillation/... and the like: terms of callbacks. Both are drawn before they are "
    "multiplied by their weights. total: what was trained with, weights included; left out where it is the task's. "
    "A point is the mean over a stretch of batches, on the first of several ranks. Each stage has a scale of its own."
)
_COLUMNS = 2
_WIDE = 10.0  # largest over smallest value from which on a scale is logarithmic

Curve = Sequence[float | None]


def plot_losses(report: Report) -> str:
    """Plot of each stage's losses over its training batches, a panel a stage; returns one ``<svg>`` element."""
    rows = -(-len(report.losses) // _COLUMNS)
    styles = _styles(report.losses)

    def draw(panels: Sequence[Any]) -> None:
        for panel, (name, curves) in zip(panels, report.losses.items(), strict=False):
            _draw(panel, curves, styles)
            panel.set_title(name)
        for panel in panels[len(report.losses) :]:
            panel.set_visible(False)
        handles = {line.get_label(): line for panel in panels for line in panel.get_lines()}
        panels[0].figure.legend(handles=[*handles.values()], loc="outside lower left", frameon=False, ncols=3)

    return draw_figure(draw, columns=_COLUMNS, rows=rows, height=0.6 + 2.7 * rows, name="losses")


def _draw(panel: Any, curves: LossCurves, styles: Mapping[str, tuple[str, str]]) -> None:
    lines = _lines(curves)
    for name, curve in lines.items():
        colour, dashes = styles[name]
        label = f"{name}, {'weighted' if name == TOTAL else 'unweighted'}"
        marker = "." if len(curve) < 3 else ""  # a single point has no line
        values = [float("nan") if value is None else value for value in curve]
        panel.plot(curves.batches, values, dashes, color=colour, label=label, marker=marker, linewidth=1.3)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("training batch")
    panel.set_ylabel("loss")
    _scale(panel, [value for curve in lines.values() for value in curve if value is not None])
    panel.grid(axis="y")


def _lines(curves: LossCurves) -> dict[str, Curve]:
    """The curves to draw: the total only where it is not the task's."""
    same = curves.values.get(TASK) == curves.values.get(TOTAL)
    return {name: curve for name, curve in curves.values.items() if not (same and name == TOTAL)}


def _styles(losses: Mapping[str, LossCurves]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each curve, the same in every panel."""
    terms = dict.fromkeys(name for curves in losses.values() for name in curves.terms)
    found = {
        name: (SERIES[1 + place % (len(SERIES) - 1)], DASHES[1 + place // (len(SERIES) - 1) % (len(DASHES) - 1)])
        for place, name in enumerate(terms)
    }
    return {TASK: (SERIES[0], DASHES[0]), TOTAL: (INK, DASHES[0]), **found}


def _scale(panel: Any, values: Sequence[float]) -> None:
    """Take a logarithmic scale where a linear one would hide the smaller curves."""
    ratio = max(values) / min(values) if values and min(values) > 0.0 else 1.0
    if ratio <= _WIDE:
        return
    from matplotlib.ticker import LogLocator

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < _WIDE**3 else (1.0,)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylabel("loss (log scale)")
