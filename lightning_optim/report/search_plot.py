"""Plots of an architecture search: its front, and what each decision brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_optim.report.figure import INK, SERIES, draw_figure
from lightning_optim.report.search_findings import Found, SearchFindings

FRONT_LEGEND = (
    "Every dot is an architecture that was evaluated; those on the line are the front, which no other beats in all of "
    "its axes. The star is the pick, the square the network as it was."
)
_MOST_DECISIONS = 16
_MANY = 1e4  # from which on a number is told as 12 k or 12 M


def plot_front(findings: SearchFindings, name: str) -> str:
    """Plot of the evaluated architectures, a panel for each further axis of the front; returns one ``<svg>`` element.

    Args:
        findings: Of the search.
        name: Of the stage.
    """
    first, *others = findings.axes

    def draw(panels: Sequence[Any]) -> None:
        for panel, axis in zip(panels, others, strict=True):
            _draw_front(panel, findings, axis, first)
            panel.set_xlabel(findings.title(axis))
            if max(abs(found.values[axis]) for found in findings.evaluations) >= _MANY:
                from matplotlib.ticker import EngFormatter

                panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
        panels[0].set_ylabel(findings.title(first))

    return draw_figure(draw, columns=len(others), height=3.8, name=f"front of {name}")


def plot_effects(findings: SearchFindings, name: str) -> str:
    """Plot of what each option adds to the first objective, a line for each decision; returns one ``<svg>`` element.

    The decisions that matter most come first; no more than 16 are drawn.
    """
    spans = {decision: max(found.values()) - min(found.values()) for decision, found in findings.effects.items()}
    decisions = sorted(spans, key=lambda decision: -spans[decision])[:_MOST_DECISIONS]

    def draw(panels: Sequence[Any]) -> None:
        panel = panels[0]
        for row, decision in enumerate(decisions):
            effects = findings.effects[decision]
            panel.plot(list(effects.values()), [row] * len(effects), color=INK, alpha=0.3, linewidth=1.2, zorder=1)
            for option, effect in effects.items():
                is_picked = findings.pick.options.get(decision) == option
                colour = SERIES[0] if is_picked else INK
                panel.scatter(effect, row, s=46 if is_picked else 22, color=colour, zorder=2)
                panel.annotate(
                    option,
                    (effect, row),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=colour,
                )
        panel.axvline(0.0, color=INK, alpha=0.25, linewidth=1.0)
        panel.set_yticks(range(len(decisions)), decisions)
        panel.set_ylim(len(decisions) - 0.4, -0.8)
        panel.set_xlabel(f"what it adds to {findings.title(findings.objectives[0])}")
        panel.margins(x=0.08)

    return draw_figure(draw, columns=1, height=0.9 + 0.36 * len(decisions), name=f"effects of {name}")


def _draw_front(panel: Any, findings: SearchFindings, across: str, up: str) -> None:
    def point(found: Found) -> tuple[float, float]:
        return found.values[across], found.values[up]

    panel.scatter(*zip(*map(point, findings.evaluations), strict=True), s=18, color=INK, alpha=0.35, linewidths=0)
    front = sorted(map(point, findings.pareto))
    panel.plot(*zip(*front, strict=True), ".-", color=SERIES[0], linewidth=1.3, markersize=8)
    own = [point(found) for found in findings.evaluations if dict(found.options) == dict(findings.own)]
    if own:
        panel.scatter(*own[0], marker="s", s=60, facecolors="none", edgecolors=SERIES[1], linewidths=1.8, zorder=3)
        panel.annotate("as it was", own[0], xytext=(8, -4), textcoords="offset points", color=SERIES[1])
    pick = point(findings.pick)
    panel.scatter(*pick, marker="*", s=170, color=SERIES[0], zorder=4)
    panel.annotate("pick", pick, xytext=(-8, 7), textcoords="offset points", ha="right", color=SERIES[0])
    panel.margins(x=0.12, y=0.14)
    panel.grid(axis="y")
