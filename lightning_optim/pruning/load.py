"""Load a pruned model for inference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_optim.errors import ArtefactError, CaptureError, LightningOptimError, reason_of
from lightning_optim.graph.capture import capture_network
from lightning_optim.graph.coupling import Group, couple, keep_channels
from lightning_optim.surgery.cut import apply_cut, taken_out
from lightning_optim.surgery.resize import resize, sizes_of
from lightning_optim.surgery.select import named_modules, plain_name, submodule

Cut = Mapping[str, Any]
Model = TypeVar("Model", bound=nn.Module)


def load_pruned(
    model: Model, path: str | Path, *, cut: Cut | str | Path | None = None, example: tuple[Any, ...] | None = None
) -> Model:
    """Return the small model that a file describes: a copy of ``model``, brought to its shape, with its weights.

    Masked weights need nothing more: they are zeros in the file.

    Args:
        model: The full-size module, as it is built; left as it is. Either the LightningModule, or its network alone.
        path: A Trainer's checkpoint, or the weights alone (safetensors, or a saved ``state_dict``). No code in it runs.
        cut: What ``PruningScheduler.cut`` said, or the file of it (a stage's ``cut.pt``); checkpoints hold it already.
        example: Positional inputs of ``model``, by which the shape is read off the weights where no cut is known.

    Returns:
        A module in evaluation mode.

    Raises:
        ArtefactError: If a file is missing, broken or of another model, or the shape cannot be told.

    Example:
        >>> import tempfile
        >>> small, full = nn.Linear(2, 1), nn.Linear(3, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(small.state_dict(), f"{folder}/small.pt")
        ...     load_pruned(full, f"{folder}/small.pt", cut={"weight": [[1, torch.tensor([0, 2]), 3]]})
        Linear(in_features=2, out_features=1, bias=True)
    """
    path = Path(path)
    content = _read(path)
    weights = _weights(content, path)
    cuts = _cuts_of(content) if cut is None else [cut if isinstance(cut, Mapping) else _read(Path(cut))]
    loaded = copy.deepcopy(model)
    try:
        for one in cuts:  # modules that were taken out have no names in the file
            gone = {name: one[name] for name in taken_out(one)}
            if gone:
                resize(_cut_network(loaded, gone, {}, path), gone)
        weights = _renamed(loaded, weights, path)
        for one in cuts:
            resize(_cut_network(loaded, one, weights, path), one)
        if not cuts and example is not None:
            _shape_after(loaded, weights, example)
    except ArtefactError:
        raise
    except (LightningOptimError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be brought to its shape: {reason_of(error)}") from error
    _check(
        loaded, weights, path, "" if cuts or example is not None else "; give cut or example, if channels were removed"
    )
    own = {plain_name(name): name for name in loaded.state_dict()}
    loaded.load_state_dict({own[name]: tensor for name, tensor in weights.items()}, strict=True)
    return loaded.eval()


# Reading.


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtefactError(f"there is no file {path}; give a checkpoint or weights of the pruned model")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a {type(content).__name__}; a checkpoint or a state_dict is needed")
    return content


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file fails wherever it breaks off, with whatever that raises
        reason = reason_of(error)
        raise ArtefactError(f"{path} cannot be read as plain weights: {reason}") from error


def _weights(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    found = content.get("state_dict", content)
    weights = {plain_name(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(found):
        raise ArtefactError(f"{path} holds no weights: a checkpoint's 'state_dict', or tensors by name, are needed")
    return weights


def _cuts_of(content: Mapping[str, Any]) -> list[Cut]:
    """What each pruning callback of a checkpoint has cut."""
    states = content.get("callbacks", {}) if "state_dict" in content else {}
    return [state["cut"] for state in states.values() if isinstance(state, Mapping) and state.get("cut")]


# Names.


def _renamed(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights by the model's own names: the file may be of the network in it, or of the module around it."""
    wanted = {plain_name(name) for name in model.state_dict()}
    if not wanted:
        raise ArtefactError(f"{type(model).__name__} has no weights to take from {path}")
    if wanted == weights.keys():
        return dict(weights)
    first, known = sorted(wanted)[0], sorted(weights)[0]
    outer = {name[: -len(first)] for name in weights if name.endswith(f".{first}")}
    inner = {name[: -len(known)] for name in wanted if name.endswith(f".{known}")}
    readings = [
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for prefix in sorted(outer)
    ]
    readings += [{prefix + name: value for name, value in weights.items()} for prefix in sorted(inner)]
    fitting = [reading for reading in readings if reading.keys() == wanted]
    if len(fitting) > 1:
        raise ArtefactError(
            f"{path} fits {type(model).__name__} in {len(fitting)} ways; load the module that was saved"
        )
    if fitting:
        return fitting[0]
    missing, extra = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted)
    raise ArtefactError(
        f"{path} is of another model than {type(model).__name__}: {len(missing)} weights are missing from it "
        f"({', '.join(missing[:2]) or 'none'}), {len(extra)} have no place ({', '.join(extra[:2]) or 'none'})"
    )


def _cut_network(model: nn.Module, cut: Cut, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The module whose names the record has, and whose weights in the file have the record's sizes."""
    for prefix in ("", *named_modules(model)):
        network = submodule(model, prefix)
        dot = f"{prefix}." if prefix else ""
        if all(_fits(network, name, cuts, weights.get(dot + name)) for name, cuts in cut.items()):
            return network
    raise ArtefactError(
        f"the cut recorded in {path} is of another model than {type(model).__name__}, or of other weights"
    )


def _fits(network: nn.Module, name: str, cuts: Any, saved: Tensor | None) -> bool:
    try:
        sizes = sizes_of(network, name)
    except LightningOptimError:
        return False
    return all(dim < len(sizes) for dim, _, _ in cuts) and (
        saved is None or all(dim < saved.dim() and saved.shape[dim] == len(kept) for dim, kept, _ in cuts)
    )


# Shapes.


def _shape_after(model: nn.Module, weights: Mapping[str, Tensor], example: tuple[Any, ...]) -> None:
    """Cut as many channels of each coupled group as the weights say; which ones does not matter to what is saved."""
    try:
        coupling = couple(capture_network(model, example))
    except CaptureError as error:
        raise ArtefactError(f"the shape cannot be told without the cut: {reason_of(error)}") from error
    plan = keep_channels(
        [(group, torch.arange(left)) for group in coupling.groups if (left := _left(group, weights)) < group.size]
    )
    _check_all_saved(model, plan, weights)
    apply_cut(model, plan)


def _left(group: Group, weights: Mapping[str, Tensor]) -> int:
    """How many channels the saved tensors have, by those that the group alone makes up."""
    for member in group.members:
        is_whole = member.length in (None, member.index.numel())
        if is_whole and member.name in weights and member.dim < weights[member.name].dim():
            return max(weights[member.name].shape[member.dim] // member.index.shape[1], 1)
    return group.size


def _check_all_saved(model: nn.Module, plan: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """A tensor that is cut and not in the file would keep entries of the wrong channels."""
    lost = [name for name in plan if name not in weights and _is_tensor(model, name)]
    if lost:
        raise ArtefactError(f"{lost[0]!r} is not in the file, and depends on which channels were kept; give cut")


def _is_tensor(model: nn.Module, name: str) -> bool:
    path, _, key = name.rpartition(".")
    return isinstance(getattr(submodule(model, path), key, None), Tensor)


def _check(model: nn.Module, weights: Mapping[str, Tensor], path: Path, advice: str) -> None:
    own = {plain_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name, shape in own.items() if shape != tuple(weights[name].shape)]
    if wrong:
        first = wrong[0]
        raise ArtefactError(
            f"{len(wrong)} weights of {path} have another shape than those of {type(model).__name__} (first {first!r}: "
            f"{list(weights[first].shape)} in the file, {list(own[first])} in the model){advice}"
        )
