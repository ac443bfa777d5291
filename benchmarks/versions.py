"""Which versions of torch and Python does the suite pass on?

    python -m benchmarks.versions [--only 3.11:2.9.1 3.13:2.13.0] [--interpreter 3.10=/path/to/python] [--out FILE]

For each pair an environment is made, with what ``constraints.txt`` says of all else, the test command of the README is
run in it, and it is removed: one environment at a time, since one with CUDA takes 5.5 GB. An environment that is there
already (``--environment 3.11:2.9.1=/path/to/python``) gets this checkout, and stays. A pair is measured once; with
``--out`` what is done is kept, with the commit and the names of tests that failed, and a further call goes on. The
table's rows stand in README.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console

from benchmarks.common import parser_for

ROOT = Path(__file__).parents[1]
PAIRS = ("3.11:2.13.0", "3.10:2.13.0", "3.13:2.13.0", "3.11:2.14.1", "3.11:2.9.1", "3.11:2.8.0")
FREE = 15e9
EXTRAS = "dev,export,hpo,report,demo"


def constraints(torch: str) -> str:
    """The project's constraints with another torch."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join([*(line for line in lines if not line.startswith("torch==")), f"torch=={torch}"]) + "\n"


def make_environment(python: str, torch: str, folder: Path) -> str:
    """Make an environment below ``folder``, with everything that the tests need; return its Python."""
    environment, pins = folder / "venv", folder / "constraints.txt"
    pins.write_text(constraints(torch))
    _run([python, "-m", "venv", str(environment)])
    own = str(environment / "bin" / "python")
    _run([own, "-m", "pip", "install", "-q", "-c", str(pins), "-e", f"{ROOT}[{EXTRAS}]"])
    return own


def measure(python: str, report: Path, workers: int) -> dict[str, Any]:
    """Install this checkout into an environment, and run the suite there."""
    _run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", str(ROOT)])
    began = time.perf_counter()
    command = [python, "-m", "pytest", "-q", f"-n{workers}", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run(
        command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True)
    return {**_counted(report), "seconds": round(time.perf_counter() - began), "commit": commit.stdout.strip()}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} ... failed: {done.stderr.strip().splitlines()[-1]}")


def _counted(report: Path) -> dict[str, Any]:
    """Numbers of tests by their outcome, the names of those that failed with the first line of why, and the skipped."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    failed: dict[str, str] = {}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in cases:
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        outcome = "failed" if fault is not None else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        if fault is not None:
            failed[f"{case.get('classname')}::{case.get('name')}"] = (fault.get("message") or "").split("\n")[0][:300]
    return {**counts, "failures": failed}


def interpreter(version: str, given: dict[str, str]) -> str:
    """Path of a Python of that version.

    Raises:
        RuntimeError: If there is none.
    """
    if version in given:
        return given[version]
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise RuntimeError(f"no python{version} on the path; give --interpreter {version}=/path/to/python")
    return found


def row(pair: str, found: dict[str, Any]) -> str:
    """One line of the table in README."""
    python, torch = pair.split(":")
    if "reason" in found:
        return f"| {python} | {torch} | not run: {found['reason']} | | |"
    return f"| {python} | {torch} | {found['passed']} | {found['failed']} | {found['skipped']} |"


def main() -> None:
    """Measure every pair, print the table, and as the last line a JSON object of the numbers."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", nargs="+", default=PAIRS, help="pairs PYTHON:TORCH")
    parser.add_argument("--interpreter", nargs="+", default=[], help="VERSION=PATH")
    parser.add_argument("--environment", nargs="+", default=[], help="PAIR=PATH of a Python that has all it needs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="JSON file of what is done")
    options = parser.parse_args()
    given = dict(each.split("=", 1) for each in options.interpreter)
    environments = dict(each.split("=", 1) for each in options.environment)
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    console = Console()
    for pair in options.only:
        if pair not in done:
            python, torch = pair.split(":")
            with tempfile.TemporaryDirectory() as folder:
                try:
                    own = environments.get(pair)
                    if own is None and shutil.disk_usage(folder).free < FREE:
                        raise RuntimeError(f"less than {FREE / 1e9:.0f} GB free")
                    own = own or make_environment(interpreter(python, given), torch, Path(folder))
                    done[pair] = measure(own, Path(folder) / "tests.xml", options.workers)
                except RuntimeError as error:
                    done[pair] = {"reason": str(error)}
            if options.out:
                options.out.write_text(json.dumps(done, indent=1))
        console.print(row(pair, done[pair]), soft_wrap=True)
    console.print_json(json.dumps({pair: done[pair].get("failed") for pair in options.only}))


if __name__ == "__main__":
    main()
