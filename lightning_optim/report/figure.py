"""Figures as SVG text, in the text colour of the page around them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

INK = "#010203"  # stands for the page's own text colour until the SVG is written
SERIES = ("#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6", "#14b8a6", "#ef4444")  # read well on black and white
DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a stage's name is a dollar sign
    "font.family": "sans-serif",
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401  # asked for, not used
    except ImportError:
        return False
    return True


def draw_figure(draw: Callable[[Sequence[Any]], None], *, columns: int, height: float, name: str, rows: int = 1) -> str:
    """Draw a figure as wide as the page.

    Args:
        draw: Draws into its panels, row by row.
        columns: Panels beside each other.
        height: In inches; it is 10.4 inches wide.
        name: Tells its marks from those of other figures on a page.
        rows: Panels below each other.

    Returns:
        One ``<svg>`` element.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt keeps the marks of two plots on one page apart, and the bytes the same from run to run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(10.4, height), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        draw(list(panels))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
