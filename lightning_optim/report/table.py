"""Table of the stages side by side, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_optim.cost.turns import Spread, spread_of
from lightning_optim.report.result import Report, StageResult
from lightning_optim.report.wording import (
    say_bytes,
    say_count,
    say_factor,
    say_gain,
    say_milliseconds,
    say_percent,
    say_points,
    say_spread,
)

HEADINGS = ("stage", "val %", "test %", "params", "MACs", "file", "ms b1", "ms b32", "agree %")
LEGEND = (
    "Second line: times smaller or faster than the base; accuracies: points above it. Bold: the deployed model. ms: "
    "CPU time of a call; a question mark: not decided."
)
LATENCY_HEADINGS = ("stage", "batch", "CPU ms", "wall ms", "times faster")
LATENCY_LEGEND = "Medians over the moments of measuring, with quartiles; times faster than the base, in CPU time."
DEPLOY_LEGEND = "Chosen by accuracy in validation, bytes, and CPU times as far as they could be told apart."
DEPLOY_HEADINGS = ("for", "stage", "test %", "file", "ms b1", "ms b32", "deploy")

Cell = tuple[str, str]


def rows_of(report: Report) -> list[tuple[Cell, ...]]:
    """Return per stage one cell per heading: the value, and how it compares with the base's (empty for the base)."""
    return [_row(report, stage) for stage in report.stages]


def latency_rows_of(report: Report) -> list[tuple[Cell, ...]]:
    """Return per stage and batch size the CPU time of a call, the time on the clock and the gain, with quartiles."""
    return [
        (
            (stage.name, ""),
            (str(batch), ""),
            _milliseconds(timing.cpu),
            _milliseconds(timing.wall),
            _gain(report.speedup(stage, batch)),
        )
        for stage in report.stages
        for batch, timing in report.timings.get(stage.name, {}).items()
    ]


def deploy_rows_of(report: Report) -> list[tuple[Cell, ...]]:
    """Return per aim the stage whose file serves it best on the machine that measured, and that file."""
    rows = [(aim, report.stage(name)) for aim, name in report.best.items()]
    return [
        (
            (aim, ""),
            (stage.name, ""),
            (_number(stage.test_accuracy), ""),
            (say_bytes(stage.bytes), ""),
            (say_milliseconds(stage.latency_ms_b1), ""),
            (say_milliseconds(stage.latency_ms_b32), ""),
            (stage.file, ""),
        )
        for aim, stage in rows
    ]


def build_table(report: Report) -> Table:
    """Return the table of stages that ``print_table`` prints; it fits 80 columns."""
    names = [stage.name for stage in report.stages]
    bold = names.index(report.deployed.name)
    return _table(report.title, HEADINGS, rows_of(report), bold=bold)


def print_table(report: Report, console: Console | None = None) -> None:
    """Print the stages, their latencies, what to deploy, and what to know before."""
    console = console or Console()
    console.print(build_table(report))
    console.print(Text(LEGEND, "dim"))
    if report.timings:
        console.print(_table("latency of a call", LATENCY_HEADINGS, latency_rows_of(report)))
        console.print(Text(LATENCY_LEGEND, "dim"))
    if report.best:
        console.print(_table("what to deploy on this machine", DEPLOY_HEADINGS, deploy_rows_of(report)))
        console.print(Text(DEPLOY_LEGEND, "dim"))
    for remark in report.remarks:
        console.print(Text(f"- {remark}"))


def _table(title: str, headings: Sequence[str], rows: Sequence[tuple[Cell, ...]], bold: int = -1) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=Text(title),
        title_style="bold",
    )
    for heading in headings:
        is_text = heading in ("stage", "for", "deploy")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for position, row in enumerate(rows):
        style = "bold" if position == bold else ""
        table.add_row(
            *(Text.assemble((value, style), *([("\n" + note, "dim")] if note else [])) for value, note in row)
        )
    return table


def _row(report: Report, stage: StageResult) -> tuple[Cell, ...]:
    base = report.base

    def factor(key: str) -> str:
        return "" if stage is base else say_factor(getattr(base, key), getattr(stage, key))

    def points(key: str) -> str:
        return "" if stage is base else say_points(getattr(base, key), getattr(stage, key))

    def gain(batch: int, key: str) -> str:
        spread = report.speedup(stage, batch)
        return factor(key) if spread is None else f"{say_gain(spread.median)}{'' if spread.is_decided else ' ?'}"

    return (
        (stage.name, ""),
        (_number(stage.validation_accuracy), points("validation_accuracy")),
        (_number(stage.test_accuracy), points("test_accuracy")),
        (say_count(stage.parameters), factor("parameters")),
        (say_count(stage.macs), factor("macs")),
        (say_bytes(stage.bytes), factor("bytes")),
        (say_milliseconds(stage.latency_ms_b1), gain(1, "latency_ms_b1")),
        (say_milliseconds(stage.latency_ms_b32), gain(32, "latency_ms_b32")),
        (_number(stage.agreement), ""),
    )


def _milliseconds(values: Sequence[float]) -> Cell:
    spread = spread_of(values)
    return say_milliseconds(spread.median), f"{say_milliseconds(spread.low)} to {say_milliseconds(spread.high)}"


def _gain(spread: Spread | None) -> Cell:
    if spread is None:
        return "", ""
    return (say_gain(spread.median) if spread.is_decided else "not decided"), say_spread(spread)


def _number(fraction: float | None) -> str:
    """Percentage without its sign, which stands in the heading."""
    return say_percent(fraction).removesuffix(" %")
