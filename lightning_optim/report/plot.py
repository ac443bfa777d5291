"""Plots of a report as SVG text, in the text colour of the page around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_optim.report.figure import DASHES, INK, SERIES, draw_figure
from lightning_optim.report.result import Report, StageResult
from lightning_optim.report.wording import say_bytes, say_count, say_milliseconds
from lightning_optim.search.pareto import pareto_front

Axis = tuple[str, Callable[[StageResult], float | None], Callable[[Any], str]]
_COSTS: tuple[Axis, ...] = (
    ("file size", lambda stage: stage.bytes, say_bytes),
    ("MACs of one sample", lambda stage: stage.macs, say_count),
    ("CPU ms at batch 1", lambda stage: stage.latency_ms_b1, say_milliseconds),
    ("CPU ms at batch 32", lambda stage: stage.latency_ms_b32, say_milliseconds),
)


def plot_trade_off(report: Report) -> str:
    """Plot of test accuracy against file size and against latency at batch 32; the line joins the Pareto front.

    Args:
        report: Stages without a latency are left out of its panel.

    Returns:
        One ``<svg>`` element.

    Raises:
        ImportError: If matplotlib is not installed; see ``figure.can_plot``.
    """

    def draw(panels: Sequence[Any]) -> None:
        for panel, (label, cost_of, say) in zip(panels, (_COSTS[0], _COSTS[3]), strict=True):
            points = [(stage, cost) for stage in report.stages if (cost := cost_of(stage)) is not None]
            if points:
                _draw_trade_off(panel, points, say, _colours(report))
            panel.set_xlabel(f"{label} (log scale, less is better)")
        panels[0].set_ylabel("test accuracy, %")

    return draw_figure(draw, columns=2, height=3.6, name="trade-off")


def plot_stages(report: Report) -> str:
    """Plot of size, MACs and both latencies, one bar per stage; returns one ``<svg>`` element."""

    def draw(panels: Sequence[Any]) -> None:
        names, colours = [stage.name for stage in report.stages], list(_colours(report).values())
        for panel, (label, cost_of, say) in zip(panels, _COSTS, strict=True):
            values = [cost_of(stage) for stage in report.stages]
            bars = panel.barh(range(len(names)), [value or 0.0 for value in values], color=colours, height=0.62)
            panel.bar_label(bars, [say(value) for value in values], padding=4)
            panel.set_title(label)
            panel.set_yticks(range(len(names)), names)
            panel.invert_yaxis()
            panel.set_xticks([])
            panel.spines["bottom"].set_visible(False)
            panel.margins(x=0.35)
        for panel in panels[1:]:
            panel.set_yticklabels([])

    return draw_figure(draw, columns=4, height=0.9 + 0.36 * len(report.stages), name="stages")


def plot_curves(report: Report) -> str:
    """Plot of validation accuracy over the epochs of all stages, one after another; returns one ``<svg>`` element."""

    def draw(panels: Sequence[Any]) -> None:
        begin, colours = 0, _colours(report)
        for name, curve in report.curves.items():
            epochs, colour = range(begin + 1, begin + len(curve) + 1), colours.get(name, INK)
            panels[0].plot(epochs, [100 * value for value in curve], ".-", color=colour, label=name)
            begin += len(curve)
        panels[0].set_xlabel("epoch, all stages one after another")
        panels[0].set_ylabel("validation accuracy, %")
        panels[0].grid(axis="y")
        panels[0].legend(frameon=False, loc="lower right", ncols=2)

    return draw_figure(draw, columns=1, height=3.4, name="curves")


def plot_sensitivity(
    title: str, lines: Mapping[str, Sequence[float]], *, at: Sequence[float], across: str, up: str
) -> str:
    """Plot of a metric against what was done to one part at a time, one line a part; returns one ``<svg>`` element.

    Args:
        title: Names the figure.
        lines: Name of a part -> the metric at each point.
        at: The points.
        across: Label of the horizontal axis.
        up: Label of the vertical axis.
    """

    def draw(panels: Sequence[Any]) -> None:
        for place, (name, values) in enumerate(lines.items()):
            colour, style = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
            panels[0].plot(at, values, marker=".", linestyle=style, color=colour, label=name)
        panels[0].set_xticks(at, [f"{point:g}" for point in at])
        panels[0].set_xlabel(across)
        panels[0].set_ylabel(up)
        panels[0].grid(axis="y")
        panels[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    height = max(3.6, 0.2 * len(lines))
    return draw_figure(draw, columns=1, height=height, name=title)


def _draw_trade_off(
    panel: Any, points: list[tuple[StageResult, float]], say: Callable[[Any], str], colours: dict[str, str]
) -> None:
    costs = [(cost, -stage.test_accuracy) for stage, cost in points]
    front = pareto_front(costs)
    line = sorted((cost, -100 * negated) for cost, negated in (costs[index] for index in front))
    panel.plot(*zip(*line, strict=True), color=INK, alpha=0.45, linewidth=1.2, zorder=1)
    for index, (stage, cost) in enumerate(points):
        accuracy, is_best, colour = 100 * stage.test_accuracy, index in front, colours[stage.name]
        panel.scatter(
            cost, accuracy, s=64, zorder=2, edgecolors=colour, linewidths=1.6, facecolors=colour if is_best else "none"
        )
        # The line rises to the right, so its upper left is free.
        offset, side = ((-6, 7), "right") if is_best else ((8, -4), "left")
        panel.annotate(stage.name, (cost, accuracy), xytext=offset, textcoords="offset points", ha=side)
    panel.set_xscale("log")
    ticks = sorted({cost for _, cost in points})
    panel.set_xticks(_apart(ticks), [say(tick) for tick in _apart(ticks)])
    panel.minorticks_off()
    panel.margins(x=0.25, y=0.22)
    panel.grid(axis="y")


def _apart(ticks: list[float]) -> list[float]:
    """Leave out ticks whose labels would touch the one before, on a logarithmic axis."""
    kept = ticks[:1]
    span = ticks[-1] / ticks[0]
    for tick in ticks[1:]:
        if tick / kept[-1] > span**0.14:
            kept.append(tick)
    return kept


def _colours(report: Report) -> dict[str, str]:
    """Colour of each stage, the same in every plot."""
    return {stage.name: SERIES[index % len(SERIES)] for index, stage in enumerate(report.stages)}
