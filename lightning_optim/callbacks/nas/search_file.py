"""File of a search's progress, from which a search that was stopped continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from lightning_optim.atomic import write_atomic
from lightning_optim.errors import ArtefactError
from lightning_optim.nas.progress import SearchProgress
from lightning_optim.nas.selection import Selection
from lightning_optim.search.decision import Decision
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.surgery.shard import local


@final
class SearchFile:
    """JSON file of a search's progress; rank 0 writes it as a whole after each evaluation.

    Args:
        path: The file; it need not exist.
        identity: What makes a search the same search, as plain primitives: see ``search_identity``.
        is_writer: Whether this process writes.
        broadcast: Gives every rank what the first one has read.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        is_writer: bool = True,
        broadcast: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self._path, self._identity = Path(path), dict(identity)
        self._is_writer, self._broadcast = is_writer, broadcast

    def load(self, progress: SearchProgress) -> None:
        """Let a search continue from the file, if there is one.

        Raises:
            ArtefactError: If the file is of another search, or holds none.
        """
        text = self._path.read_text() if self._path.is_file() else None
        text, identity = self._broadcast((text, self._identity))
        if text is None:
            return
        saved = self._parsed(text)
        differing = [key for key in identity if saved["search"].get(key) != identity[key]]
        if differing:
            raise ArtefactError(
                f"{self._path} holds a search that differs in {', '.join(differing)}; pass another path, or remove "
                "the file to begin anew"
            )
        try:
            progress.load_state_dict(saved["progress"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"the search in {self._path} cannot continue: {error}") from error

    def save(self, progress: SearchProgress) -> None:
        """Replace the file with the present progress."""
        if self._is_writer:
            write_atomic(self._path, json.dumps({"search": self._identity, "progress": progress.state_dict()}).encode())

    def _parsed(self, text: str) -> dict[str, dict[str, Any]]:
        try:
            saved = json.loads(text)
        except ValueError as error:
            raise ArtefactError(f"{self._path} is no file of a search: {error}") from error
        if not isinstance(saved, dict) or not all(isinstance(saved.get(key), dict) for key in ("search", "progress")):
            raise ArtefactError(f"{self._path} is no file of a search: it lacks 'search' or 'progress'")
        return saved


def search_identity(
    module: nn.Module, decisions: Sequence[Decision], strategy: Strategy, selection: Selection, seed: int
) -> dict[str, Any]:
    """Return what two searches must share for one to continue the other; the number of evaluations may differ.

    Args:
        module: The supernet. Its parameters count; batch-norm statistics, which a search sets, do not.
        decisions: What is decided.
        strategy: A dataclass, told from others by its ``repr``.
        selection: The monitored score and the bound.
        seed: Of the search.
    """
    return {
        "space": [[decision.name, list(decision.options), decision.default] for decision in decisions],
        "strategy": repr(strategy),
        "selection": repr(replace(selection, evaluations=1)),
        "seed": seed,
        "weights": _weights_digest(module),
    }


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        values = local(parameter).detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
