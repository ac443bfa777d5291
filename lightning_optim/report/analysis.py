"""Analysis of a network: what could be pruned, and what that would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_optim.pruning.sensitivity import Sensitivity
from lightning_optim.quantization.mixed_precision.sensitivity import BitSensitivity
from lightning_optim.report.figure import can_plot
from lightning_optim.report.plot import plot_sensitivity
from lightning_optim.report.wording import say_count

_NO_PLOTS = "<section><p class='notice'>No plots: pip install 'lightning-optim[report]'</p></section>"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoupledGroup:
    """Coupled group: channels that can only be removed together.

    Args:
        name: The first weight that makes them.
        channels: How many.
        members: Tensors that make or read them, each with its dimension.
        parameters: Parameters that are removed with all of them.
        macs: Multiply-accumulates of one sample that are removed with all of them.
    """

    name: str
    channels: int
    members: tuple[tuple[str, int], ...]
    parameters: int
    macs: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Analysis of a network before it is pruned.

    Args:
        network: Name of its class.
        parameters: All of its parameters.
        macs: Multiply-accumulates of one sample.
        groups: Coupled channels of targeted layers, as far as they can be removed.
        frozen: Targeted layers whose output channels cannot be removed.
        unknown: Operators without a rule, which keep the channels that they meet, with their number.
        sensitivity: The metric against sparsity.
        bits: Loss when one layer has few bits, and all else has 8: the metric if ``mode`` is ``"min"``, the negative
            metric if it is ``"max"``; ``None`` if no widths were given, or no layer has an integer form.
    """

    network: str
    parameters: int
    macs: int
    groups: tuple[CoupledGroup, ...]
    frozen: tuple[str, ...]
    unknown: dict[str, int]
    sensitivity: Sensitivity
    bits: BitSensitivity | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the analysis as plain data."""
        return asdict(self)


def print_analysis(analysis: Analysis, console: Console) -> None:
    """Print what is coupled, then the metric against sparsity per group and per layer."""
    table = _table("coupled channels", ["group", "channels", "parameters", "MACs", "made or read by"])
    for group in analysis.groups:
        weights = [name for name, _ in group.members[1:] if name.endswith(".weight")]
        others = "\n".join(name.removesuffix(".weight") for name in weights)
        table.add_row(
            group.name.removesuffix(".weight"),
            str(group.channels),
            say_count(group.parameters),
            say_count(group.macs),
            others,
        )
    console.print(table)
    for line in _remarks(analysis):
        console.print(Text(line, "dim"))
    for section in _sections(analysis):
        console.print(_sensitivity_table(section))


def render_analysis(analysis: Analysis) -> str:
    """Return one HTML page, which needs no other file."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = escape(f"What {analysis.network} can spare")
    figures = f"{say_count(analysis.parameters)} parameters, {say_count(analysis.macs)} MACs of one sample"
    body = [f"<p class='lead'>{escape(figures)}</p>", _coupled_html(analysis)]
    body += map(_sensitivity_html, _sections(analysis))
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{title}</title>\n<style>\n{style}</style></head>\n<body><main>\n<h1>{title}</h1>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """One table and its plot: a metric, part by part, at some points."""

    title: str
    metric: str
    across: str
    points: tuple[float, ...]
    lines: dict[str, tuple[float, ...]]


def _sections(analysis: Analysis) -> list[_Section]:
    table, bits = analysis.sensitivity, analysis.bits
    found = [
        _Section(
            title=f"{table.metric} when one {part} loses {loss}",
            metric=table.metric,
            across="sparsity",
            points=(0.0, *table.sparsities),
            lines={curve.pool: (table.base, *curve.values) for curve in curves},
        )
        for part, loss, curves in (("group", "channels", table.groups), ("layer", "weights", table.layers))
    ]
    if bits is not None:
        sign = -1.0 if table.mode == "max" else 1.0
        found.append(
            _Section(
                title=f"{table.metric} when one layer has few bits and all else has 8: {sign * bits.base:.4g} without",
                metric=table.metric,
                across="bits",
                points=tuple(map(float, bits.bits)),
                lines={layer.layer: tuple(sign * value for value in layer.values) for layer in bits.layers},
            )
        )
    return [section for section in found if section.lines]


def _remarks(analysis: Analysis) -> list[str]:
    remarks = []
    if analysis.frozen:
        remarks.append(f"channels that cannot go: {', '.join(analysis.frozen)}")
    if analysis.unknown:
        remarks.append(f"operators without a rule: {', '.join(analysis.unknown)}")
    return remarks


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_style="bold", title_justify="left", pad_edge=False)
    for place, heading in enumerate(headings):
        is_text = place == 0 or heading.startswith("made")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return table


def _sensitivity_table(section: _Section) -> Table:
    shown = _table(section.title, [section.across, *(f"{point:g}" for point in section.points)])
    for name, values in section.lines.items():
        shown.add_row(name.removesuffix(".weight"), *map(_say, values))
    return shown


def _coupled_html(analysis: Analysis) -> str:
    rows = "\n".join(
        f"<tr><td>{escape(group.name)}</td><td>{group.channels}</td><td>{say_count(group.parameters)}</td>"
        f"<td>{say_count(group.macs)}</td></tr><tr><td colspan='4'><small>"
        f"{escape(', '.join(f'{name} [{dim}]' for name, dim in group.members))}</small></td></tr>"
        for group in analysis.groups
    )
    remarks = "".join(f"<p class='caption'>{escape(line)}</p>" for line in _remarks(analysis))
    return (
        "<section><h2>Coupled channels</h2><div class='wide'><table><thead><tr><th>group</th><th>channels</th>"
        f"<th>parameters</th><th>MACs</th></tr></thead><tbody>{rows}</tbody></table></div>{remarks}</section>"
    )


def _sensitivity_html(section: _Section) -> str:
    heads = "".join(f"<th>{point:g}</th>" for point in section.points)
    rows = "\n".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_say(value)}</td>" for value in values) + "</tr>"
        for name, values in section.lines.items()
    )
    figure = ""
    if can_plot():
        across = f"{section.across} of one alone"
        svg = plot_sensitivity(section.title, section.lines, at=section.points, across=across, up=section.metric)
        figure = f"<figure>{svg}</figure>"
    return (
        f"<section><h2>{escape(section.title)}</h2>{figure}<div class='wide'><table><thead><tr>"
        f"<th>{escape(section.across)}</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"
        + ("" if figure else _NO_PLOTS)
    )


def _say(value: float) -> str:
    return f"{value:.4g}"
