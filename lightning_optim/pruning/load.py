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
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import apply_cut, taken_out
from lightning_optim.surgery.masked_norm import MaskedNorm, mask_norms
from lightning_optim.surgery.resize import resize, sizes_of
from lightning_optim.surgery.select import named_modules, submodule
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
            if gone:
                resize(_cut_network(loaded, gone, {}, path), gone)
        weights = fit_names(weights, loaded, path, advice="give the module that was saved")
        for one in cuts:
            resize(_cut_network(loaded, one, weights, path), one)
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
    for norms in norms_in(content).values():
        mask_norms(_norms_network(loaded, norms, path), norms)
    return loaded


# The record of the cut.


def _read_cut(path: Path) -> Cut:
    content = read_plain(path)
    if not isinstance(content, Mapping):
        raise ArtefactError(f"{path} holds a {type(content).__name__}; what PruningScheduler.cut says is needed")
    return content


def _cut_network(model: nn.Module, cut: Cut, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The module whose names the record has, and whose weights in the file have the record's sizes.

    Of several such modules it is the first that is not cut yet: the record of each network finds its own.
    """
    found = []
    for prefix in ("", *named_modules(model)):
        network = submodule(model, prefix)
        dot = f"{prefix}." if prefix else ""
        if all(_fits(network, name, cuts, weights.get(dot + name)) for name, cuts in cut.items()):
            found.append(network)
    if not found:
        raise ArtefactError(
            f"the cut recorded in {path} is of another model than {type(model).__name__}, or of other weights"
        )
    return next((network for network in found if _is_whole(network, cut)), found[0])


def _norms_network(model: nn.Module, norms: Mapping[str, MaskedNorm], path: Path) -> nn.Module:
    """The module below which there are all layers whose norms were masked, with tensors of the same sizes."""
    for prefix in ("", *named_modules(model)):
        network = submodule(model, prefix)
        if all(_fits_norm(network, name, norm) for name, norm in norms.items()):
            return network
    raise ArtefactError(f"the masks recorded in {path} are of another model than {type(model).__name__}")


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
