"""Help on what can be chosen on the command line, read off the configuration folders themselves."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

_USAGE = """[bold]lightning-optim[/bold]: train, prune, distil, quantize, export and measure, in one command

  lightning-optim                                  the default job, on scikit-learn's digits
  lightning-optim data=fashion_mnist seed=1        another data set, another seed
  lightning-optim model._target_=my.Module +model.width=64   your own LightningModule, with its keywords
  lightning-optim --multirun seed=0,1,2            several runs
  lightning-optim analyze weights=outputs/<folder>/stages/0-base   what could be pruned, and what it would cost
  lightning-optim run=outputs/<folder>             go on with a run that was killed
  lightning-optim --cfg job                        print the configuration instead of running it
  lightning-optim --hydra-help                     Hydra's own flags
"""


def print_help(console: Console | None = None) -> None:
    """Print usage, and every group with its options and one line about each."""
    console = console or Console()
    console.print(_USAGE, highlight=False)
    table = Table(title="groups: choose with GROUP=OPTION", title_justify="left", box=None, pad_edge=False)
    for heading in ("group", "option", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"  # a source checkout keeps it beside the package
    root = inside if inside.is_dir() else package.parent / "conf"
    for name, folder in (("", root / "lightning_optim"), ("callbacks", root / "callbacks")):
        for group, option, line in _options(folder, name):
            table.add_row(group, option, line)
    console.print(table)


def _options(folder: Path, group: str) -> list[tuple[str, str, str]]:
    rows = []
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        if entry.is_dir() and not entry.name.startswith("_"):
            rows += _options(entry, f"{group}/{entry.name}".lstrip("/"))
        elif group and entry.name.endswith(".yaml"):
            rows.append((group, entry.name.removesuffix(".yaml"), _first_comment(entry.read_text())))
    return rows


def _first_comment(text: str) -> str:
    comments = [
        line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line
    ]
    return comments[0] if comments else ""
