"""Loading of a supernet's checkpoint into a module that has been converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.weights import check_shapes, fit_names, load_fitted, read_plain, weights_in


def read_supernet(path: str | Path, state_key: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return what a Trainer's checkpoint holds, and the state in it of one callback.

    Raises:
        ArtefactError: If the file is missing, or without such a state.
    """
    content = read_plain(path)
    states = content.get("callbacks", {}) if isinstance(content, Mapping) else {}
    if state_key not in states:
        raise ArtefactError(f"{path} is no checkpoint with {state_key}: it holds states of {sorted(states)}")
    return content, states[state_key]


def load_weights(supernet: nn.Module, content: Mapping[str, Any], path: str | Path) -> None:
    """Put the weights of a checkpoint into a supernet.

    Raises:
        ArtefactError: If they are of another module or space.
    """
    advice = "give the module that was trained, and this callback its space"
    weights = fit_names(weights_in(content, Path(path)), supernet, Path(path), advice=advice)
    check_shapes(weights, supernet, Path(path), advice=advice)
    load_fitted(weights, supernet)
