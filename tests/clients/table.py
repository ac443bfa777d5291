"""Table of clients and callbacks, as ``docs/compatibility.md`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HEAD = """# Clients

Projects that train with Lightning, unchanged, and each callback in them, given by configuration alone: by the file that
`LIGHTNING_OPTIM` names where a script builds its own Trainer (Lightning's demos, transformers, pytorch-forecasting,
scvi-tools), and by the project's own argument for callbacks where it builds one (neuralforecast and darts, both with
`pytorch_lightning`). The Lightning + Hydra template and LightningCLI are in the tests (`tests/clients/`).

What a cell tells was counted apart from the callback: zeros among the weights of linear layers and convolutions after
the fit; parameters that are gone; weights that reach a matrix product or a convolution of the last training step with
at most 16 values a row (they are trained for 4 bits); the loss of the first step, without and with a teacher; widths
that one layer had in training. Networks are small and trained for a few steps: a cell says that it works, not how well.
A number in brackets is that of a note below: a reason, or a warning.

Lightning's MNIST demo is not here: it needs torchvision, whose wheels from PyPI do not import beside a torch for CPUs.

Made by `python tests/clients/run.py --table docs/compatibility.md`. `pytest -m clients` counts anew, and fails if a
cell neither works nor is refused.
"""
COLUMNS = {
    "weights": "`PruningScheduler`",
    "channels": "`PruningScheduler`, `Channel`",
    "quantization": "`QATFakeQuant`",
    "distillation": "`DistillationTeacher`",
    "search": "`NASSupernet`",
}
SHOWN = ("torch", "lightning", "pytorch-lightning")
NAMES = {"lightning_demos": "lightning", "scvi": "scvi-tools", "pytorch_forecasting": "pytorch-forecasting"}


@dataclass(frozen=True)
class Row:
    """Row of one network: the kind of each outcome and what is told of it, by callback."""

    project: str
    network: str
    versions: Mapping[str, str]
    cells: Mapping[str, tuple[str, str]]

    @property
    def name(self) -> str:
        """Name of the project on the package index."""
        return NAMES.get(self.project, self.project)


def written(rows: list[Row]) -> str:
    """The whole file: head, versions, table, notes."""
    notes: list[str] = []
    lines = [" | ".join(["| client", *COLUMNS.values()]) + " |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for row in rows:
        cells = [cell(*row.cells[key], notes) for key in COLUMNS]
        lines.append(" | ".join([f"| {row.name}: {row.network}".rstrip(": "), *cells]) + " |")
    told = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(
        [HEAD, "## Versions", "", *versions(rows), "", "## Table", "", *lines, "", "## Notes", "", *told, ""]
    )


def cell(kind: str, text: str, notes: list[str]) -> str:
    """What fits into a cell; what was said beside it becomes a note."""
    short, warned = text.partition("; it warns: ")[::2] if kind == "works" else ("", text)
    shown = f"{kind}: {short}" if short else kind
    if not warned:
        return shown
    if warned not in notes:
        notes.append(warned)
    return f"{shown} ({notes.index(warned) + 1})"


def versions(rows: list[Row]) -> list[str]:
    """One line a project."""
    lines = {}
    for row in rows:
        found = {name: row.versions[name] for name in (row.name, *SHOWN) if name in row.versions}
        lines[row.name] = f"- {row.name}: {', '.join(f'{name} {number}' for name, number in found.items()) or 'none'}"
    return list(lines.values())
