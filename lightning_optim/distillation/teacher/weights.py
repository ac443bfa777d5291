"""Put weights from a file into a network, and say exactly what does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.select import plain_name


def existing_file(path: str | Path) -> Path:
    """Return the path of a file that is there.

    Raises:
        ArtefactError: If it is missing or no file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"the teacher file {path} {what}; give the path of a trained model's weights")
    return path


def filled(
    architecture: nn.Module | None,
    student: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    prefix: str | None,
    path: Path,
) -> nn.Module:
    """Return ``architecture``, or a copy of the student's network, with the file's weights in it.

    Args:
        architecture: A module to fill; ``None`` copies the student's network.
        student: Finds the student's network.
        weights: The file's tensors by name.
        prefix: What stands before the network's own names in the file, such as ``"net."``; ``None`` finds it.
        path: The file, for messages.

    Raises:
        ArtefactError: If names or shapes differ, naming the first ones that do.
    """
    module = copy.deepcopy(student()) if architecture is None else architecture
    wanted = {plain_name(name): (name, tensor) for name, tensor in module.state_dict().items()}
    found = {plain_name(name): tensor for name, tensor in weights.items()}
    if prefix is None:
        prefix = _find_prefix(list(wanted), list(found), path)
    found = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    _check_names(set(wanted), found, prefix, path)
    _check_shapes({name: tensor for name, (_, tensor) in wanted.items()}, found, path)
    module.load_state_dict({own: found[name] for name, (own, _) in wanted.items()})
    return module


def _find_prefix(wanted: list[str], found: list[str], path: Path) -> str:
    if not wanted:
        raise ArtefactError(f"the teacher's architecture has no weights to take from {path}")
    names = set(found)
    candidates = {name[: -len(wanted[0])] for name in found if name == wanted[0] or name.endswith(f".{wanted[0]}")}
    complete = sorted(prefix for prefix in candidates if all(prefix + name in names for name in wanted))
    if len(complete) > 1:
        raise ArtefactError(f"{path} holds this network more than once, under {complete}; set prefix to one of them")
    return complete[0] if complete else _likeliest_prefix(wanted, found)


def _likeliest_prefix(wanted: list[str], found: list[str]) -> str:
    """Return the prefix under which most names agree, so that the error names what really differs."""
    votes = {"": 0}
    for name in wanted:
        for key in found:
            if key == name or key.endswith(f".{name}"):
                votes[key[: -len(name)]] = votes.get(key[: -len(name)], 0) + 1
    return max(votes, key=lambda prefix: votes[prefix])


def _check_names(wanted: set[str], found: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    missing, unexpected = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if not missing and not unexpected:
        return
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} weights are not in it (first {missing[0]!r})")
    if unexpected:
        faults.append(f"{len(unexpected)} of its weights have no place (first {unexpected[0]!r})")
    under = f" below {prefix!r}" if prefix else ""
    raise ArtefactError(
        f"{path} is of another model{under}: {' and '.join(faults)}; give the teacher's own architecture or prefix"
    )


def _check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    wrong = [name for name, tensor in wanted.items() if tensor.shape != found[name].shape]
    if wrong:
        first = wrong[0]
        raise ArtefactError(
            f"{path} is of another model: {len(wrong)} of {len(wanted)} weights have another shape (first {first!r}: "
            f"{list(found[first].shape)} in the file, {list(wanted[first].shape)} in the network); "
            "give the teacher's own architecture"
        )
