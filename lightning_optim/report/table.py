"""Table of the stages side by side, on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_optim.report.result import Report, StageResult
from lightning_optim.report.wording import (
    say_bytes,
    say_count,
    say_factor,
    say_milliseconds,
    say_percent,
    say_points,
)

HEADINGS = ("stage", "val %", "test %", "params", "MACs", "file", "ms b1", "ms b32", "agree %")
LEGEND = "Second line: times smaller or faster than the base; accuracies: points above it."

Cell = tuple[str, str]


def rows_of(report: Report) -> list[tuple[Cell, ...]]:
    """Return per stage one cell per heading: the value, and how it compares with the base's (empty for the base)."""
    return [_row(report.base, stage) for stage in report.stages]


def build_table(report: Report) -> Table:
    """Return the table that ``print_table`` prints; it fits 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=Text(report.title),
        title_style="bold",
    )
    for heading in HEADINGS:
        is_name = heading == "stage"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name)
    for position, row in enumerate(rows_of(report)):
        style = "bold" if position == len(report.stages) - 1 else ""
        cells = [Text.assemble((value, style), *([("\n" + note, "dim")] if note else [])) for value, note in row]
        table.add_row(*cells)
    return table


def print_table(report: Report, console: Console | None = None) -> None:
    """Print the table, and under it what the deployed model's ratios mean."""
    console = console or Console()
    console.print(build_table(report))
    console.print(Text(LEGEND, "dim"))


def _row(base: StageResult, stage: StageResult) -> tuple[Cell, ...]:
    def factor(key: str) -> str:
        return "" if stage is base else say_factor(getattr(base, key), getattr(stage, key))

    def points(key: str) -> str:
        return "" if stage is base else say_points(getattr(base, key), getattr(stage, key))

    return (
        (stage.name, ""),
        (_number(stage.validation_accuracy), points("validation_accuracy")),
        (_number(stage.test_accuracy), points("test_accuracy")),
        (say_count(stage.parameters), factor("parameters")),
        (say_count(stage.macs), factor("macs")),
        (say_bytes(stage.bytes), factor("bytes")),
        (say_milliseconds(stage.latency_ms_b1), factor("latency_ms_b1")),
        (say_milliseconds(stage.latency_ms_b32), factor("latency_ms_b32")),
        (_number(stage.agreement), ""),
    )


def _number(fraction: float | None) -> str:
    """Percentage without its sign, which stands in the heading."""
    return say_percent(fraction).removesuffix(" %")
