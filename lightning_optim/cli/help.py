"""Help on what can be chosen on the command line, read off the configuration folders themselves."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_USAGE = """[bold]lightning-optim[/bold]: train, prune, distil, quantize, export and measure, in one command

  lightning-optim                                  the default job, on scikit-learn's digits
  lightning-optim data=fashion_mnist seed=1        another data set, another seed
  lightning-optim model._target_=my.Module +model.width=64 data._target_=my.Data
                                                   your own LightningModule, with a keyword, and your own
                                                   LightningDataModule, from files of the current folder
  lightning-optim --multirun seed=0,1,2            several runs
  lightning-optim analyze weights=outputs/<folder>/stages/0-base   what could be pruned, and what it would cost
  lightning-optim run=outputs/<folder>             go on with a run that was killed
  lightning-optim analyze --help                   what an analysis can be told
  lightning-optim --cfg job                        print the configuration instead of running it
  lightning-optim --hydra-help                     Hydra's own flags
"""


_ANALYZE = """[bold]lightning-optim analyze[/bold]: what could be pruned or take fewer bits, and what it would cost

  lightning-optim analyze weights=outputs/<folder>/stages/0-base   a stage of a run
  lightning-optim analyze weights=my.ckpt model._target_=my.Module data._target_=my.Data metric=val/loss mode=min
                                                   your own checkpoint, module, data and metric
  lightning-optim analyze weights=my.ckpt 'sparsities=[0.5]' 'bits=[]'   less of it
"""


def print_help(job: str = "compress", console: Console | None = None) -> None:
    """Print how a job is called: for the main job every group with its options, for an analysis its keys."""
    console = console or Console()
    console.print(_ANALYZE if job == "analyze" else _USAGE, highlight=False)
    if job == "analyze":
        for key, value, text in _keys(job):
            console.print(f"  [bold]{escape(f'{key}={value}')}[/bold]  {escape(text)}", highlight=False)
    else:
        console.print(_groups())


def _keys(job: str) -> list[tuple[str, str, str]]:
    """Each key of a job, its default, and what its comment says."""
    found = [
        (group, default, f"another option of the main job, or your own with {group}._target_=FILE.CLASS")
        for group, default in (("data", "digits"), ("model", "residual"))
    ]
    found.append(("lightning_optim/pruning/criterion@criterion", "magnitude", "what is least important goes first"))
    parents: list[str] = []
    for line in (_conf() / "lightning_optim" / f"{job}.yaml").read_text().splitlines():
        parts = re.match(r"( *)([a-z]\w*):(?: ([^#]+?))?(?:  # (.*))?$", line)
        if parts is not None:
            indent, key, value, text = parts.groups()
            parents = [*parents[: len(indent) // 2], key]
            if value and text:
                found.append((".".join(parents), value.replace("???", "(needed)"), text))
    return found


def _groups() -> Table:
    table = Table(title="groups: choose with GROUP=OPTION", title_justify="left", box=None, pad_edge=False)
    for heading in ("group", "option", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    for name, folder in (("", _conf() / "lightning_optim"), ("callbacks", _conf() / "callbacks")):
        for group, option, line in _options(folder, name):
            table.add_row(group, option, line)
    return table


def _conf() -> Path:
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"  # a source checkout keeps it beside the package
    return inside if inside.is_dir() else package.parent / "conf"


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
