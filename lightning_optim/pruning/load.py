"""Loading of a pruned model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_optim.errors import ArtefactError, CaptureError, LightningOptimError, reason_of
from lightning_optim.graph.capture import capture_network
from lightning_optim.graph.coupling import Group, couple, keep_channels
from lightning_optim.pruning.masks import unpack
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import apply_cut, taken_out
from lightning_optim.surgery.masked_norm import MaskedNorm, mask_norms
from lightning_optim.surgery.resize import resize, sizes_of
from lightning_optim.surgery.select import named_modules, plain_name, submodule
from lightning_optim.surgery.shrunk_checkpoint import cuts_in, norms_in
from lightning_optim.surgery.weights import check_shapes, fit_names, load_fitted, read_plain, weights_in

_ADVICE = "copy or save it again, or, if you trust it, give what torch.load(path, weights_only=False) returns"
Cut = Mapping[str, Any]
Model = TypeVar("Model", bound=nn.Module)


def load_pruned(
    model: Model,
    path: str | Path | Mapping[str, Any],
    *,
    cut: Cut | str | Path | None = None,
    example: tuple[Any, ...] | None = None,
) -> Model:
    """Return the small model that a file describes: a copy of ``model``, brought to its shape, with its weights.

    Masked weights need nothing more: they are zeros in the file. Layers that take a statistic over channels, such as a
    layer norm, leave masked ones out, as they did when the file was written; so do deep copies of the module.

    Args:
        model: The full-size module, as it is built; left as it is. Either the LightningModule, or its network alone.
        path: A Trainer's checkpoint, or the weights alone (safetensors, or a saved ``state_dict``). No code in it runs:
            hyperparameters and other objects are passed over. What such a file holds may be given instead.
        cut: What ``PruningScheduler.cut`` said, or the file of it (a stage's ``cut.pt``); checkpoints hold it already.
        example: Positional inputs of ``model``, by which the shape is read off the weights where no cut is known.

    Returns:
        A module whose parts are in the modes of those of ``model``: call ``eval`` on it before inference.

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
    if isinstance(path, Mapping):
        content, path = path, Path("the checkpoint")
    else:
        content, path = read_plain(path, advice=_ADVICE), Path(path)
    weights = weights_in(content, path)
    cuts = [*cuts_in(content).values()] if cut is None else [cut if isinstance(cut, Mapping) else _read_cut(Path(cut))]
    loaded = copy_model(model)
    try:
        for one in cuts:  # modules that were taken out have no names in the file
            gone = {name: one[name] for name in taken_out(one)}
            for network in _bypassed_networks(loaded, gone, weights, path) if gone else ():
                resize(network, gone)
        weights = fit_names(weights, loaded, path, advice="give the module that was saved")
        for one in cuts:
            left = {name: cuts for name, cuts in one.items() if name not in taken_out(one)}
            for network in _cut_networks(loaded, left, weights, path).values() if left else ():
                resize(network, left)
        if not cuts and example is not None:
            _shape_after(loaded, weights, example)
    except ArtefactError:
        raise
    except (LightningOptimError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be brought to its shape: {reason_of(error)}") from error
    is_known = bool(cuts) or example is not None
    advice = "give the module that was saved" if is_known else "give cut or example, if channels were removed"
    check_shapes(weights, loaded, path, advice=advice)
    load_fitted(weights, loaded)
    for key, norms in norms_in(content).items():
        masks = {name: unpack(held["bits"], held["shape"]) for name, held in content["callbacks"][key]["masks"].items()}
        for network in _norms_networks(loaded, norms, masks, path):
            mask_norms(network, norms)
    return loaded


# The record of the cut.


def _read_cut(path: Path) -> Cut:
    content = read_plain(path)
    if not isinstance(content, Mapping):
        raise ArtefactError(f"{path} holds a {type(content).__name__}; what PruningScheduler.cut says is needed")
    return content


def _cut_networks(model: nn.Module, cut: Cut, weights: Mapping[str, Tensor], path: Path) -> dict[str, nn.Module]:
    """Modules whose names the record has, and whose weights in the file have the record's sizes, by what leads there.

    A network's copies were cut with it. Of two networks of one shape, each was cut by a record of its own: what is cut
    already stays.
    """
    found = {}
    for prefix in ("", *named_modules(model)):
        network = submodule(model, prefix)
        dot = f"{prefix}." if prefix else ""
        if all(_fits(network, name, cuts, weights.get(dot + name)) for name, cuts in cut.items()):
            found[dot] = network
    if not found:
        raise ArtefactError(
            f"the cut recorded in {path} is of another model than {type(model).__name__}, or of other weights"
        )
    return {dot: network for dot, network in found.items() if _is_whole(network, cut)} or dict([*found.items()][:1])


def _bypassed_networks(model: nn.Module, gone: Cut, weights: Mapping[str, Tensor], path: Path) -> list[nn.Module]:
    """Modules that hold what was taken out, by the names that the file lacks; the first, where it tells nothing."""
    found = _cut_networks(model, gone, {}, path)
    lacking = [
        network
        for dot, network in found.items()
        if any(name.startswith(dot) for name in weights)
        and not any(name.startswith(tuple(f"{dot}{module}." for module in gone)) for name in weights)
    ]
    return lacking or [*found.values()][:1]


def _norms_networks(
    model: nn.Module, norms: Mapping[str, MaskedNorm], masks: Mapping[str, Tensor], path: Path
) -> list[nn.Module]:
    """Modules below which there are all layers whose norms were masked, and zeros wherever a mask has put them."""
    networks = [submodule(model, prefix) for prefix in ("", *named_modules(model))]
    found = [each for each in networks if all(_fits_norm(each, name, norm) for name, norm in norms.items())]
    if not found:
        raise ArtefactError(f"the masks recorded in {path} are of another model than {type(model).__name__}")
    return [network for network in found if _is_masked(network, masks)] or found[:1]


def _is_masked(network: nn.Module, masks: Mapping[str, Tensor]) -> bool:
    parameters = {plain_name(name): parameter for name, parameter in network.named_parameters(remove_duplicate=False)}
    return all(
        name in parameters
        and parameters[name].shape == keep.shape
        and not parameters[name][~keep.to(parameters[name].device)].any()
        for name, keep in masks.items()
    )


def _fits_norm(network: nn.Module, name: str, norm: MaskedNorm) -> bool:
    layer = named_modules(network).get(name)
    lengths = {size for _, _, size in (*norm.reads, *norm.writes)}
    return layer is not None and all(
        sizes_of(layer, tensor)[dim] in lengths for tensor, cuts in norm.plan.items() for dim, _ in cuts
    )


def _is_whole(network: nn.Module, cut: Cut) -> bool:
    return all(sizes_of(network, name)[dim] == size for name, cuts in cut.items() for dim, _, size in cuts)


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
