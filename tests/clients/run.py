"""Which callback works in which client: an environment for each project, each callback by configuration alone.

    python tests/clients/run.py [--environments FOLDER] [--keep] [--only PROJECT ...] [--table docs/compatibility.md]

Projects exclude each other's pins, so that each has an environment of its own, with torch as ``constraints.txt`` has
it. An environment that lies in the folder already is taken as it is; those that are made here are removed afterwards,
unless they are to be kept. torchvision is never installed: its wheels from PyPI do not import beside a torch for CPUs.
The table tells what was counted (see ``clients.cell``), and for what was refused the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from clients.table import Row, written

ROOT = Path(__file__).parents[2]
PROJECTS: dict[str, list[str]] = {
    "lightning_demos": [],
    "transformers": ["transformers"],
    "neuralforecast": ["neuralforecast"],
    "pytorch_forecasting": ["pytorch-forecasting"],
    "darts": ["darts[torch]"],
    "scvi": ["scvi-tools"],
}
CALLBACKS = ("weights", "channels", "quantization", "distillation", "search")
LIMIT = 600


class NotInstalledError(Exception):
    """A project's packages cannot be installed here."""


@contextmanager
def environment(project: str, folder: Path, keep: str) -> Iterator[Path]:
    """The interpreter that a project's packages are installed for; that of this process if it needs none."""
    if not PROJECTS[project]:
        yield Path(sys.executable)
        return
    place, made = folder / project, False
    try:
        if not place.is_dir():
            made = True
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            install(place, PROJECTS[project])
        yield place / "bin" / "python"
    finally:
        if made and keep == "no":
            shutil.rmtree(place, ignore_errors=True)  # one that could not be installed is gone already


def install(place: Path, packages: list[str]) -> None:
    """Install this package and those of a project, with torch as it is pinned here."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    (place / "constraints.txt").write_text("\n".join(pins))
    command = [str(place / "bin" / "pip"), "install", "-q", "-c", str(place / "constraints.txt"), "-e", str(ROOT)]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(place)
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalledError("; ".join(errors) or f"pip ended with {done.returncode}")


def answers(python: Path, *words: str, kind: str) -> tuple[list[Any], str]:
    """Run ``clients.cell`` and return what it printed, and why there is no more."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "clients.cell", *words]
    with tempfile.TemporaryFile("w+") as output:
        try:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.PIPE, text=True, env=variables, timeout=LIMIT, check=False,
                cwd=tempfile.gettempdir(),
            )  # fmt: skip
            last = ([line for line in ended.stderr.splitlines() if line.strip()] or [""])[-1]
            reason = f"the process ended with {ended.returncode}: {last.strip()}"
        except subprocess.TimeoutExpired:
            reason = f"no end within {LIMIT} s"
        output.seek(0)
        found = [line.partition(" ")[2] for line in output if line.startswith(f"{kind} ")]
    return [json.loads(line) for line in found], reason


def rows_of(project: str, python: Path) -> list[Row]:
    """Rows of a project's networks; no cell of them is left out."""
    told, reason = answers(python, project, kind="clients")
    if not told:
        return [absent(project, reason)]
    rows = []
    for network in told[0]["networks"]:
        cells, reason = answers(python, project, network, kind="cell")
        by_callback = {cell["callback"]: (cell["kind"], cell["text"]) for cell in cells}
        texts = {key: by_callback.get(key, ("fails", reason)) for key in CALLBACKS}
        rows.append(Row(project, network, told[0]["versions"], texts))
        print(json.dumps({"project": project, "network": network, "cells": texts}), flush=True)
    return rows


def absent(project: str, reason: str) -> Row:
    """Row of a project that is not there, with the reason in every cell."""
    return Row(project, "", {}, dict.fromkeys(CALLBACKS, ("not installed", reason)))


def run(projects: list[str], folder: Path, keep: str) -> list[Row]:
    """Rows of the projects, one environment at a time."""
    rows: list[Row] = []
    for project in projects:
        try:
            with environment(project, folder, keep) as python:
                rows += rows_of(project, python)
        except NotInstalledError as error:
            rows.append(absent(project, str(error)))
    return rows


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="folder of the environments; a temporary one by default")
    parser.add_argument("--keep", action="store_const", const="yes", default="no", help="leave the environments there")
    parser.add_argument("--only", nargs="+", choices=list(PROJECTS), default=list(PROJECTS))
    parser.add_argument("--table", type=Path, help="file to write the table to; standard output by default")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = run(chosen.only, chosen.environments or Path(temporary), chosen.keep)
    text = written(rows)
    if chosen.table is None:
        print(text)
    else:
        chosen.table.write_text(text)


if __name__ == "__main__":
    main()
