"""Weights from a file: read without running code, fitted to a module by name, and what differs said exactly."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.plain_parts import read_plain_parts
from lightning_optim.surgery.select import plain_name
from lightning_optim.surgery.shrunk_checkpoint import MARK

FileFormat = Literal["checkpoint", "safetensors"]
Value = TypeVar("Value")

# Reading.


def read_plain(
    path: str | Path, file_format: FileFormat | None = None, *, advice: str = "copy or save it again"
) -> Any:
    """Plain content of a file, on the CPU: tensors by name, or whatever a checkpoint of torch holds.

    Of a Trainer's checkpoint, what is not plain (hyperparameters of some class, a callback's objects) is left out.

    Args:
        path: The file.
        file_format: How it is written; ``None`` reads it off the suffix: ``.safetensors``, or else a checkpoint.
        advice: What to do about a damaged file, for the message.

    Raises:
        ArtefactError: If the file is missing, truncated, or holds more than plain content; no code in it is run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {what}; give the path of a trained model's weights")
    is_safetensors = path.suffix == ".safetensors" if file_format is None else file_format == "safetensors"
    return _read_safetensors(path, advice) if is_safetensors else _read_checkpoint(path, advice)


def _read_safetensors(path: Path, advice: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(
            path, f"is truncated or no safetensors file ({path.stat().st_size} bytes); {advice}"
        ) from error


def _read_checkpoint(path: Path, advice: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the safe loader fails wherever a damaged file breaks off, with whatever that raises
        with suppress(Exception):
            return read_plain_parts(path)
        truncated = f"is truncated or no checkpoint ({path.stat().st_size} bytes); {advice}"
        raise _unreadable(path, _refusal(error, advice) or truncated) from error


def _unreadable(path: Path, reason: str) -> ArtefactError:
    return ArtefactError(f"{path} cannot be read as plain weights: it {reason}")


def _refusal(error: Exception, advice: str) -> str | None:
    """What the safe loader refused; ``None`` if it merely found no end."""
    message = str(error)
    if not isinstance(error, pickle.UnpicklingError) or "unsupported" not in message.lower():
        return None
    _, is_named, rest = message.partition("GLOBAL ")
    what = f"the pickled object {rest.split()[0].rstrip('.')!r}" if is_named else "a pickle"
    return (
        f"holds {what} beside plain weights (or breaks off there), which could run code, and was not loaded; "
        f"save the model's state_dict alone or as safetensors, or {advice}"
    )


def weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint's ``state_dict``, or of the content itself, by their plain names.

    Args:
        content: What ``read_plain`` returned.
        path: The file, for the message.

    Raises:
        ArtefactError: If there are none.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ArtefactError(
            f"{path} holds neither a 'state_dict' nor weights by name, but a {type(content).__name__}; "
            "save the model's state_dict"
        )
    named = content.items()
    return {plain_name(str(name)): value for name, value in named if isinstance(value, Tensor) and name != MARK}


# Fitting.


def fit_names(
    weights: Mapping[str, Value], module: nn.Module, path: Path, *, advice: str, prefix: str | None = None
) -> dict[str, Value]:
    """Weights by the module's own plain names; the file may be of a part of the module, or of what stands around it.

    Args:
        weights: What the file holds, by plain name.
        module: What they are for.
        path: The file, for messages.
        advice: What to do about a file that does not fit, for messages.
        prefix: What stands before the module's names in the file, such as ``"net."``; ``None`` finds it.

    Raises:
        ArtefactError: If names differ, naming the first that do, or if they fit in several ways.

    Example:
        >>> fit_names({"net.weight": 1, "net.bias": 2, "step": 3}, nn.Linear(2, 1), Path("file"), advice="")
        {'weight': 1, 'bias': 2}
    """
    wanted = {plain_name(name) for name in module.state_dict()}
    if not wanted:
        raise ArtefactError(f"{type(module).__name__} has no weights to take from {path}")
    if prefix is None:
        readings = _exact_readings(wanted, weights)
        if len(readings) > 1:
            raise ArtefactError(f"{path} fits the network more than once, under {sorted(readings)}; {advice}")
        if readings:
            return next(iter(readings.values()))
        prefix = _likeliest_prefix(wanted, weights)
    found = _below(weights, prefix)
    _check_names(wanted, found, f"{path} is of another model{f' below {prefix!r}' if prefix else ''}", advice)
    return found


def _exact_readings(wanted: set[str], weights: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Prefix -> the weights by the module's names, for each prefix that leaves nothing missing and nothing over."""
    own, saved = min(wanted), min(weights, default="")
    outer = {name[: -len(own)] for name in weights if name == own or name.endswith(f".{own}")}
    inner = {name[: -len(saved)] for name in wanted if saved and name.endswith(f".{saved}")}
    readings = {prefix: _below(weights, prefix) for prefix in outer}
    readings |= {prefix: {prefix + name: value for name, value in weights.items()} for prefix in inner - outer}
    return {prefix: reading for prefix, reading in readings.items() if reading.keys() == wanted}


def _below(weights: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _likeliest_prefix(wanted: Collection[str], found: Collection[str]) -> str:
    """Prefix under which most names agree, so that the error names what really differs."""
    votes = {"": 0}
    for name in sorted(wanted):
        for key in found:
            if key == name or key.endswith(f".{name}"):
                votes[key[: -len(name)]] = votes.get(key[: -len(name)], 0) + 1
    return max(votes, key=lambda prefix: votes[prefix])


def _check_names(wanted: set[str], found: Mapping[str, object], fault: str, advice: str) -> None:
    missing, unexpected = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} weights are not in it (first {missing[0]!r})")
    if unexpected:
        faults.append(f"{len(unexpected)} of its weights have no place (first {unexpected[0]!r})")
    if faults:
        raise ArtefactError(f"{fault}: {' and '.join(faults)}; {advice}")


def check_shapes(weights: Mapping[str, Any], module: nn.Module, path: Path, *, advice: str) -> None:
    """Refuse weights of other shapes than the module's, whose names they have.

    Raises:
        ArtefactError: If shapes differ, naming the first that does.
    """
    own = {plain_name(name): value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    wrong = [name for name, value in own.items() if value.shape != weights[name].shape]
    if wrong:
        first = wrong[0]
        raise ArtefactError(
            f"{path} is of another model: {len(wrong)} of {len(own)} weights have another shape (first {first!r}: "
            f"{list(weights[first].shape)} in the file, {list(own[first].shape)} in the network); {advice}"
        )


# Loading.


def load_fitted(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Put weights that fit into the module; names may differ by what ``torch.compile`` and DDP put into them."""
    module.load_state_dict({name: weights[plain_name(name)] for name in module.state_dict()})


def load_state(state: Mapping[str, Any], module: nn.Module, path: Path, *, advice: str) -> None:
    """Load the state of a module of the same kind, through the hooks that the module may have for older states.

    Args:
        state: What ``state_dict`` of the other module said.
        module: Changed in place.
        path: The file, for the message.
        advice: What to do about a file that does not fit, for the message.

    Raises:
        ArtefactError: If the state is of another model, naming the first name or shape that differs.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        plain = fit_names(
            {plain_name(name): value for name, value in state.items()}, module, path, advice=advice, prefix=""
        )
        check_shapes(plain, module, path, advice=advice)
        raise ArtefactError(f"{path} is of another model: {str(error).splitlines()[-1].strip()}") from error
