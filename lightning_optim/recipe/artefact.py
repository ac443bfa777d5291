"""Artefacts: the files that a stage leaves on disk."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lightning_optim.atomic import write_atomic
from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.cut import CutPlan
from lightning_optim.surgery.weights import load_state, read_plain

BEGIN_AGAIN = "remove it to begin its stage again"


def save_weights(path: Path, module: nn.Module) -> str:
    """Write a module's state, whole or not at all.

    Returns:
        SHA-256 of names, shapes and values.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(state))
    return weights_hash(state)


def load_weights(path: Path, module: nn.Module) -> None:
    """Load the state of ``save_weights`` into a module of the same shape.

    Raises:
        ArtefactError: If the file is missing, broken, or of another model.
    """
    load_state(read_plain(path), module, path, advice="give the folder of a run of this model")


def save_cut(path: Path, cut: Mapping[str, Any]) -> None:
    """Write which channels a stage kept: plain tensors and integers."""
    buffer = io.BytesIO()
    torch.save(dict(cut), buffer)
    write_atomic(path, buffer.getvalue())


def load_cut(path: Path) -> CutPlan:
    """Read what ``save_cut`` wrote, as a plan for the model as it was before that stage.

    Raises:
        ArtefactError: If the file is missing or broken.
    """
    return {name: [(dim, kept) for dim, kept, _ in cuts] for name, cuts in _load_plain(path).items()}


def check_checkpoint(path: Path) -> None:
    """Refuse a Trainer's checkpoint that cannot be read, before a Trainer tries to.

    Raises:
        ArtefactError: If the file is missing, broken or no checkpoint.
    """
    if "state_dict" not in _load_plain(path):
        raise ArtefactError(f"{path} is no checkpoint of a Trainer; {BEGIN_AGAIN}")


def _load_plain(path: Path) -> dict[str, Any]:
    content = read_plain(path, advice=BEGIN_AGAIN)
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a {type(content).__name__}, not what a stage leaves; {BEGIN_AGAIN}")
    return content


def save_inputs(path: Path, inputs: Sequence[Tensor]) -> None:
    """Write example inputs of a network, in the order of its call."""
    write_atomic(path, save({str(number): tensor.cpu().contiguous() for number, tensor in enumerate(inputs)}))


def load_inputs(path: Path) -> list[Tensor]:
    """Read what ``save_inputs`` wrote.

    Raises:
        ArtefactError: If the file is missing or broken.
    """
    tensors = read_plain(path)
    return [tensors[str(number)] for number in range(len(tensors))]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values; equal models give equal hashes on any machine."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_atomic(path, json.dumps(content, indent=2).encode())
