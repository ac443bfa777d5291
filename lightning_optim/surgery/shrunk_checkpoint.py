"""Checkpoint of a shrunk module: it says what reads it, and what of the full-size module is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_optim.surgery.masked_norm import MaskedNorm

MARK = "parts of this model were removed; read the file with lightning_optim.pruning.load_pruned(model, path)"
"""Key of an empty entry among the weights, so that the error of a strict load says it."""
_CUTS = "lightning_optim.pruning.cuts"


def mark_shrunk(checkpoint: dict[str, Any], state_key: str, cut: Mapping[str, Any]) -> None:
    """Mark a checkpoint as one of a shrunk module; one from which nothing was removed stays as it is.

    Args:
        checkpoint: A Trainer's, with a ``state_dict``; changed in place. One of weights alone, without the states of
            callbacks, gets the record of the cut as well.
        state_key: Name of the callback that has shrunk the module.
        cut: What is left, as ``PruningScheduler.cut`` says it.

    Example:
        >>> checkpoint = {"state_dict": {}}
        >>> mark_shrunk(checkpoint, "pruning", {"weight": [[0, torch.tensor([1]), 2]]})
        >>> [*checkpoint["state_dict"]] == [MARK], [*cuts_in(checkpoint)]
        (True, ['pruning'])
    """
    if not cut:
        return
    checkpoint["state_dict"][MARK] = torch.empty(0)
    if "callbacks" not in checkpoint:
        checkpoint.setdefault(_CUTS, {})[state_key] = dict(cut)


def remove_mark(checkpoint: Mapping[str, Any]) -> None:
    """Remove the mark wherever it is: an averaging callback saves two sets of weights."""
    for part in checkpoint.values():
        if isinstance(part, dict):
            part.pop(MARK, None)


def cuts_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of each callback that has cut the module: its state key -> its cut."""
    return {**checkpoint.get(_CUTS, {}), **_held(checkpoint, "cut")}


def norms_in(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, MaskedNorm]]:
    """Return the masked norms that each callback has left: its state key -> layer of its network -> what is left."""
    states = _held(checkpoint, "norms")
    return {
        key: {name: MaskedNorm.from_state_dict(norm) for name, norm in norms.items()} for key, norms in states.items()
    }


def _held(checkpoint: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What the state of each callback says under a key, where it says anything."""
    states = checkpoint.get("callbacks", {}) if "state_dict" in checkpoint else {}
    return {name: state[key] for name, state in states.items() if isinstance(state, Mapping) and state.get(key)}
