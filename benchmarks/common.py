"""What the benchmarks have alike."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a module's text as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_study(parser: argparse.ArgumentParser) -> None:
    """Add the options of what trains for several seeds, and can go on where it was stopped."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of bases and of batches")
    parser.add_argument("--out", type=Path, help="JSON file of what is done; bases lie beside it")
    parser.add_argument("--quick", action="store_true", help="less than an eighth of the training")


def quiet() -> None:
    """One thread; no word of what Lightning finds odd about short fits."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def quiet_trainer(callbacks: Sequence[Callback], *, saves: bool = False, **settings: Any) -> Trainer:
    """Return a Trainer on one CPU that writes nothing anywhere, unless a callback saves checkpoints."""
    # Lightning imports torchvision, which ``random_models`` must be the first to do.
    from lightning.pytorch import Trainer

    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=saves,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def seconds_in_rounds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this thread in each call, once a round and after one call of each that is not timed.

    For calls that take seconds: sides of a round are measured within moments of each other, so that what slows the
    machine for a while slows them alike.

    Args:
        calls: Name -> call.
        rounds: How many.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        # Each round goes the other way, so that no call always follows the same one.
        for name in list(calls) if turn % 2 == 0 else list(reversed(calls)):
            began = time.thread_time()
            calls[name]()
            if turn > 0:
                seconds[name].append(time.thread_time() - began)
    return seconds


def times_longer(base: Sequence[float], other: Sequence[float]) -> float:
    """Median over rounds of how many times longer ``base`` took than ``other``.

    Example:
        >>> times_longer([4.0, 9.0, 6.0], [2.0, 3.0, 2.0])
        3.0
    """
    return statistics.median(mine / theirs for mine, theirs in zip(base, other, strict=True))


def show_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Print figures as a table."""
    table = Table(title=title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        is_number = isinstance(value, float) and not isinstance(value, bool)
        table.add_row(name, "not measured" if value is None else f"{value:.4g}" if is_number else str(value))
    Console().print(table)


def add_parts(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Add the options of what has several parts, some of which train."""
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to measure")
    parser.add_argument("--out", type=Path, help="folder of what is done")
    parser.add_argument("--quick", action="store_true", help="less than an eighth of the training")


def run_parts(name: str, only: Sequence[str], parts: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
    """Measure some parts one after another, print a table of each and, as the last line, one JSON object of them all.

    A part that fails says why, and the others run on: one part's failure must not lose the others' hours.
    """
    figures: dict[str, Any] = {}
    for part in only:
        try:
            found = parts[part]()
        except Exception as error:
            found = {f"{part}_failed": f"{type(error).__name__}: {error}"}
        figures |= found
        show_figures(f"{name.capitalize()}: {part}", found)
    print(json.dumps({"benchmark": name, "torch": torch.__version__, **figures}))
