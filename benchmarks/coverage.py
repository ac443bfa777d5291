"""Of a list of models, how many can be cut to half of their channels, proved right, and trained on?

    python -m benchmarks.coverage --list FILE [--limit 900] [--keep 0.5]

A line of the list names a model as ``module:factory`` (see ``benchmarks.random_models``); what follows ``#`` is a
comment. Each model runs in a process of its own on one thread, under a time limit. Every group of channels, without
a hint, loses its weakest half by the Euclidean norm of all that falls together. A model counts as shrunk if the cut
eager module equals the full-size graph without those channels, and at least a tenth of its parameters is gone; as
trainable if a backward pass in training mode then gives a gradient to every parameter that had one before.
``seconds`` is the CPU time of capture, analysis and plan; ``proof`` that of the cut with its verification.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.common import parser_for
from benchmarks.random_models import build, twice
from lightning_optim.errors import reason_of
from lightning_optim.graph import Coupling, Group, capture_network, couple
from lightning_optim.pruning import Choice, shrink_channels

TOLERANCE, LEAST_REMOVED = 1e-5, 0.1


def read_list(path: Path) -> list[str]:
    """Names of a list, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def weakest_last(model: nn.Module, group: Group, keep: float) -> Tensor:
    """Channels of a group that stay: the given fraction, rounded up, of the largest Euclidean norm."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    energy = torch.zeros(group.size)
    for member in group.members:
        if member.name in parameters:
            weight = parameters[member.name].detach().movedim(member.dim, 0)
            energy += weight.reshape(len(weight), -1).float().square().sum(1)[member.index].sum(1)
    kept = max(1, -int(-group.size * keep // 1))
    return energy.topk(kept).indices.sort().values


def plan(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keep: float) -> tuple[Coupling, list[Choice]]:
    """Capture, couple, and choose what stays of each group."""
    coupling = couple(capture_network(model, args, kwargs))
    return coupling, [(group, weakest_last(model, group, keep)) for group in coupling.groups if group.size > 1]


def without_gradient(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[str]:
    """Names of parameters that a few training steps leave without a gradient; a step may skip layers at random."""
    model.train()
    missing: set[str] = set()
    for _ in range(4):
        outputs = model(*twice(args), **twice(kwargs))
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.stack([leaf.float().square().mean() for leaf in leaves]).sum().backward()
        missing = {name for name, held in model.named_parameters() if held.requires_grad and held.grad is None}
        if not missing:
            break
    return missing


def is_trainable(name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a training step reaches every parameter that it reached in the model as built."""
    missing = without_gradient(model, args, kwargs)
    return not missing or missing <= without_gradient(*build(name))


def examine(name: str, keep: float) -> dict[str, Any]:
    """Cut one model in this process; return its figures, or why it could not be cut."""
    torch.set_num_threads(1)
    model, args, kwargs = build(name)
    model.eval()
    before = sum(parameter.numel() for parameter in model.parameters())
    row: dict[str, Any] = {"model": name, "parameters": before, "shrunk": False, "trainable": False}
    begin = time.process_time()
    try:
        coupling, choices = plan(model, args, kwargs, keep)
        row |= {"seconds": round(time.process_time() - begin, 2), "groups": len(choices), "unknown": coupling.unknown}
        begin = time.process_time()
        done = shrink_channels(model, coupling, choices, args, kwargs, tolerance=TOLERANCE)
    except Exception as error:
        return row | {"reason": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"}
    finally:
        row.setdefault("seconds", round(time.process_time() - begin, 2))
    removed = 1 - sum(parameter.numel() for parameter in model.parameters()) / before
    row |= {"removed": round(removed, 4), "error": done.error, "refused": done.refused}
    row |= {"proof": round(time.process_time() - begin, 2), "shrunk": removed >= LEAST_REMOVED}
    if not row["shrunk"]:
        row["reason"] = f"only {removed:.1%} of the parameters could go"
    try:
        row["trainable"] = is_trainable(name, model, args, kwargs)
    except Exception as error:
        row["reason"] = f"training step: {reason_of(error)}"
    return row | {"memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}


def examine_apart(name: str, keep: float, limit: float) -> dict[str, Any]:
    """Cut one model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--model", name, "--keep", str(keep)]
    failed: dict[str, Any] = {"model": name, "shrunk": False, "trainable": False}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return failed | {"reason": f"no end within {limit:.0f} s"}
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last.startswith("{"):
        return dict(json.loads(last))
    said = done.stderr.strip().rpartition("\n")[2]
    return failed | {"reason": f"exit code {done.returncode}: {said[:200]}"}


def describe(row: dict[str, Any]) -> str:
    """One line on one model."""
    if "removed" not in row:
        return f"{row['model']:<50} refused: {row['reason']}"
    state = "eager, trainable" if row["trainable"] else "not trainable"
    whole = f", {len(row['refused'])} of {row['groups']} groups whole" if row["refused"] else ""
    reason = f": {row['reason']}" if "reason" in row else ""
    return (
        f"{row['model']:<50} shrunk {row['removed']:6.1%}  error {row['error']:.0e}  {row['seconds']:6.2f} s  "
        f"proof {row['proof']:6.2f} s  {state}{whole}{reason}"
    )


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count, by package and in all."""
    tally = {
        package: {
            "models": len(chosen),
            "shrunk": sum(row["shrunk"] for row in chosen),
            "trainable": sum(row["shrunk"] and row["trainable"] for row in chosen),
        }
        for package in sorted({package_of(row) for row in rows})
        if (chosen := [row for row in rows if package_of(row) == package])
    }
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    small = [row["seconds"] for row in rows if "seconds" in row and row["parameters"] <= 100e6]
    return {
        "models": len(rows),
        "shrunk": sum(row["shrunk"] for row in rows),
        "trainable": sum(row["shrunk"] and row["trainable"] for row in rows),
        "seconds_median": round(statistics.median(seconds), 2) if seconds else None,
        "seconds_max": max(seconds, default=None),
        "seconds_max_up_to_100m": max(small, default=None),
        "error_max": max((row["error"] for row in rows if "error" in row), default=None),
        "packages": tally,
        "failed": {row["model"]: row["reason"] for row in rows if "reason" in row},
        "groups_whole": {row["model"]: row["refused"] for row in rows if row.get("refused")},
    }


def package_of(row: dict[str, Any]) -> str:
    """The package that a row's model comes from."""
    return str(row["model"]).partition(":")[0].partition(".")[0]


def main() -> None:
    """Run a list, print one line per model and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--list", type=Path, help="file of module:factory lines")
    chosen.add_argument("--model", help="one module:factory, in this process")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of each group's channels that stays")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one model may take")
    options = parser.parse_args()
    if options.model is not None:
        print(json.dumps(examine(options.model, options.keep)))
        return
    rows = []
    for name in read_list(options.list):
        rows.append(examine_apart(name, options.keep, options.limit))
        print(describe(rows[-1]), flush=True)
    settings = {"keep": options.keep, "tolerance": TOLERANCE, "torch": torch.__version__}
    print(json.dumps({"benchmark": "coverage", "settings": settings, **summarize(rows)}))


if __name__ == "__main__":
    main()
