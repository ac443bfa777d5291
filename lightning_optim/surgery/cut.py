"""Removal of channels from a live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery.attention import free_cut_heads, leave_fast_paths
from lightning_optim.surgery.attributes import refresh_attributes
from lightning_optim.surgery.bypass import bypass_of
from lightning_optim.surgery.parametrized import layer_name, weight_shape
from lightning_optim.surgery.select import plain_name
from lightning_optim.surgery.torch_private import compute_weight

Cuts = list[tuple[int, Tensor]]
"""Kept positions by dimension."""
CutPlan = dict[str, Cuts]
"""Name of a parameter, buffer or integer attribute -> what is kept of it; loads with ``weights_only=True``.

Of a module nothing is kept: it is taken out, and zeros stand in for what it returned.
"""
Replaced = dict[nn.Parameter, tuple[nn.Parameter | None, Cuts]]
"""Old parameter -> the one in its place, and how it was cut; ``None`` if its module was taken out."""


def cut_tensor(tensor: Tensor, cuts: Cuts) -> Tensor:
    """Keep the given positions along each dimension, in the memory format of the original.

    Args:
        tensor: Any tensor.
        cuts: Dimension and kept positions, shape ``[n]``.

    Example:
        >>> cut_tensor(torch.arange(6).view(2, 3), [(1, torch.tensor([0, 2]))])
        tensor([[0, 2],
                [3, 5]])
    """
    result = tensor.detach()
    for dim, kept in cuts:
        result = result.index_select(dim, kept.to(result.device))
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()


@final
@dataclass(frozen=True, slots=True)
class _Site:
    """Place in a model: a module, and what it holds under a key."""

    module: nn.Module
    key: str
    held: Any


def apply_cut(root: nn.Module, plan: CutPlan) -> Replaced:
    """Cut parameters, buffers and the attributes that describe them.

    A parameter that several modules share stays shared. Gradients are dropped. What an optimizer, an averaged
    copy or a wrapper knows of the old parameters is carried over by ``surgery.rebind``.

    Args:
        root: The model that the plan's names start from; changed in place, only after every check has passed.
        plan: Kept positions of each tensor. An integer attribute becomes the number of its kept positions.

    Returns:
        Each old parameter, with its successor and its cuts.

    Raises:
        ShrinkError: If a name or a position does not exist, or nothing would be left.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = apply_cut(layer, {"weight": [(1, torch.tensor([0, 2]))]})
        >>> layer.in_features, tuple(layer.weight.shape)
        (2, (2, 2))
    """
    modules = {plain_name(name): module for name, module in root.named_modules(remove_duplicate=False)}
    sites = {name: _find(root, modules, name) for name in plan}
    for name, site in sites.items():
        _check(name, site.held, plan[name])
    replaced = _take_out(root, [site for site in sites.values() if isinstance(site.held, nn.Module)])
    cut = {name: site for name, site in sites.items() if not isinstance(site.held, nn.Module)}
    layers = {modules[layer_name(name)] for name in cut}  # a parametrization's tensors lie below their layer
    old_shapes = {module: weight_shape(module) for module in (*layers, *(site.module for site in cut.values()))}
    for name, site in cut.items():
        _cut_site(site, plan[name], replaced)
    for owner in _share(root, replaced):
        old_shapes.setdefault(owner, weight_shape(owner))
    for module, shape in old_shapes.items():
        compute_weight(module)
        refresh_attributes(module, shape)
    free_cut_heads(root)
    leave_fast_paths(root)
    return replaced


def taken_out(plan: Mapping[str, Sequence[tuple[Any, ...]]]) -> list[str]:
    """Names of the modules that a plan takes out, of which nothing is kept.

    Args:
        plan: A ``CutPlan``, or one whose cuts say more behind the dimension and what is kept of it.

    Example:
        >>> taken_out({"conv.weight": [(0, torch.tensor([1]))], "block.branch": [(0, torch.tensor([]))]})
        ['block.branch']
    """
    return [name for name, cuts in plan.items() if any(not len(cut[1]) for cut in cuts)]


def _find(root: nn.Module, modules: Mapping[str, nn.Module], name: str) -> _Site:
    path, _, key = name.rpartition(".")
    module = modules.get(path)
    if module is not None:
        for holder in (module._parameters, module._buffers, module._modules, vars(module)):
            held = holder.get(key)
            if held is not None:
                return _Site(module, key, held)
    raise ShrinkError(
        f"{type(root).__name__} has no parameter, buffer, module or attribute {name!r}: is it another model?"
    )


def _take_out(root: nn.Module, sites: list[_Site]) -> Replaced:
    """Put zeros in place of modules, wherever they are registered; return the parameters that are gone with them."""
    before = list(root.parameters()) if sites else []
    stand_ins = {site.held: bypass_of(site.held).train(site.held.training) for site in sites}
    for module in [*root.modules()] if sites else []:
        for key, child in module._modules.items():
            if child in stand_ins:
                module._modules[key] = stand_ins[child]
    left = set(root.parameters())
    return {parameter: (None, []) for parameter in before if parameter not in left}


def _check(name: str, held: Any, cuts: Cuts) -> None:
    if isinstance(held, nn.Module):
        if any(len(kept) for _, kept in cuts):
            raise ShrinkError(f"{name!r} is a module: it can be taken out, but not in part; name its tensors")
        return
    if not isinstance(held, Tensor) and type(held) is not int:
        raise ShrinkError(f"{name!r} must be a tensor or an integer to be cut, got {type(held).__name__}")
    shape = tuple(held.shape) if isinstance(held, Tensor) else (held,)
    for dim, kept in cuts:
        if not 0 <= dim < len(shape):
            raise ShrinkError(f"{name!r} has {len(shape)} dimensions, got a cut of dimension {dim}")
        if not len(kept):
            raise ShrinkError(f"dimension {dim} of {name!r} would be left empty; keep at least one position")
        if int(kept.min()) < 0 or int(kept.max()) >= shape[dim]:
            raise ShrinkError(
                f"dimension {dim} of {name!r} has {shape[dim]} positions, the plan keeps {int(kept.max())}: "
                "was the model cut already?"
            )


def _cut_site(site: _Site, cuts: Cuts, replaced: Replaced) -> None:
    held = site.held
    if isinstance(held, nn.Parameter):
        if held not in replaced:
            new = nn.Parameter(cut_tensor(held, cuts), requires_grad=held.requires_grad)
            new.__dict__.update(held.__dict__)
            replaced[held] = (new, cuts)
    elif isinstance(held, Tensor):
        site.module._buffers[site.key] = cut_tensor(held, cuts)
    else:
        setattr(site.module, site.key, len(cuts[0][1]))


def _share(root: nn.Module, replaced: Replaced) -> list[nn.Module]:
    """Put successors in every place of the old parameters; return the modules concerned."""
    owners = []
    for module in root.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter in replaced:
                module._parameters[key] = replaced[parameter][0]
                owners.append(module)
    return owners
