"""Cells of one client's row: each callback by configuration alone, and what it did, as one line of JSON each.

python -m clients.cell PROJECT [NETWORK]
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Literal

import hydra
import torch
from lightning.pytorch import seed_everything
from omegaconf import OmegaConf

from clients.client import VALUES, Client, configurations
from clients.counting import parameters_of, zeros_of
from clients.watch import Watch
from lightning_optim.errors import LightningOptimError

Kind = Literal["works", "refused", "fails", "no effect"]


@dataclass(frozen=True)
class Cell:
    """What came of one callback in one client."""

    callback: str
    kind: Kind
    text: str


def cells_of(client: Client, door: str, folder: Path) -> Iterator[Cell]:
    """Train a client once alone, once as a teacher, and once with each callback."""
    teacher, alone = train(client, seed=1), train(client, seed=0)
    assert teacher.module is not None
    assert train(client, seed=0).losses == alone.losses, "a client that no seed repeats cannot be compared with itself"
    torch.save({"state_dict": teacher.module.state_dict()}, folder / "teacher.ckpt")
    for callback, node in configurations(client, str(folder / "teacher.ckpt")).items():
        watch = Watch(client.width, reads_products=callback == "quantization")
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            yield outcome(callback, client, watch, alone, added(node, door, folder), met)


def train(client: Client, seed: int, watch: Watch | None = None, callbacks: tuple[Any, ...] = ()) -> Watch:
    """Train a client, and return what was seen."""
    watch = watch or Watch(client.width)
    seed_everything(seed, verbose=False)
    client.train([watch, *callbacks])
    return watch


@contextmanager
def added(node: dict[str, Any], door: str, folder: Path) -> Iterator[tuple[Any, ...]]:
    """Callbacks for the client's own argument; or none, while a file adds them to every Trainer."""
    if door == "argument":
        yield (hydra.utils.instantiate(node),)
        return
    OmegaConf.save({"added": node}, folder / "callbacks.yaml")
    os.environ["LIGHTNING_OPTIM"] = str(folder / "callbacks.yaml")
    try:
        yield ()
    finally:
        del os.environ["LIGHTNING_OPTIM"]


def outcome(callback: str, client: Client, watch: Watch, alone: Watch, door: Any, met: list[Any]) -> Cell:
    """Train with one callback and say what came of it."""
    try:
        with door as callbacks:
            train(client, 0, watch, callbacks)
    except Exception as error:
        if watch.products is not None and len(watch.losses) < len(alone.losses):
            watch.products.__exit__(None, None, None)
        steps = len(watch.losses)
        when = f"after {steps} step{'s' if steps > 1 else ''}: " if steps else ""
        text = " ".join(str(error).split()) or type(error).__name__
        if is_refusal(error):
            return Cell(callback, "refused", when + text)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Cell(callback, "fails", f"{when}{type(error).__name__} in {Path(where.filename).name}: {text}")
    text = EFFECTS[callback](watch, alone)
    said = "; ".join(sorted({" ".join(str(each.message).split()) for each in met if is_own(each)}))
    if text is None:
        return Cell(callback, "no effect", said or "nothing said")
    return Cell(callback, "works", f"{text}; it warns: {said}" if said else text)


def is_own(warning: warnings.WarningMessage) -> bool:
    """Whether this package has warned; it points at the line of its caller, which may be Lightning's."""
    return warning.category is UserWarning and "lightning_optim" in warning.filename


def is_refusal(error: Exception) -> bool:
    """Whether this package has refused, and told why."""
    if isinstance(error, LightningOptimError):
        return True
    *_, last = traceback.extract_tb(error.__traceback__)
    return isinstance(error, (ValueError, TypeError)) and "lightning_optim" in last.filename


def weights(watch: Watch, alone: Watch) -> str | None:
    """Zeros among the weights of linear layers and convolutions."""
    share, before = zeros_of(watch.module), zeros_of(alone.module)
    return f"{share:.0%} zeros" if share > before + 0.1 else None


def channels(watch: Watch, alone: Watch) -> str | None:
    """Parameters that are gone, or else zeros."""
    gone = 1.0 - parameters_of(watch.module) / parameters_of(alone.module)
    masked = weights(watch, alone)
    return f"{gone:.0%} of the parameters gone" if gone > 0.0 else masked and f"{masked}, no parameter gone"


def quantization(watch: Watch, alone: Watch) -> str | None:
    """Operands of products that have few distinct values."""
    found = watch.products
    assert found is not None
    return f"{found.few} of {found.all} weights read with at most {VALUES} values a row" if found.few else None


def distillation(watch: Watch, alone: Watch) -> str | None:
    """The first step's loss, of the same weights and the same batch; weights, where a step keeps its loss to itself."""
    own, total = alone.losses[0], watch.losses[0]
    if total > own + 1e-6:
        return f"first loss {own:.3f}, then {total:.3f}"
    apart = distance(watch.module, alone.module)
    return f"weights end {apart:.3f} apart" if apart > 1e-6 else None


def distance(left: torch.nn.Module, right: torch.nn.Module) -> float:
    """Largest difference of two modules' parameters."""
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def search(watch: Watch, alone: Watch) -> str | None:
    """Widths that one layer had in training."""
    widths = ", ".join(map(str, sorted(watch.widths)))
    return f"trains widths {widths}" if len(watch.widths) > len(alone.widths) else None


EFFECTS = {each.__name__: each for each in (weights, channels, quantization, distillation, search)}


def main(project: str, network: str | None = None) -> None:
    """Print the cells of a row; or, without a network, which networks there are, with the versions of packages."""
    torch.set_num_threads(1)
    module = importlib.import_module(f"clients.projects.{project}")
    if network is None:
        tops = {name.partition(".")[0] for name in sys.modules}
        names = {name for top, found in packages_distributions().items() if top in tops for name in found}
        print("clients " + json.dumps({"networks": list(module.CLIENTS), "versions": {n: version(n) for n in names}}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells_of(module.CLIENTS[network], module.DOOR, Path(folder)):
            print("cell " + json.dumps(asdict(cell)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
