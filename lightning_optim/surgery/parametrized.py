"""Parametrized layers: a weight that is computed from originals is pruned through these."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lightning_optim.surgery.select import plain_name
from lightning_optim.surgery.torch_private import (
    computes_spectral_norm,
    computes_weight_norm,
    is_pruned_by_torch,
    weight_norm_dim,
)

_PARAMETRIZED = ".parametrizations."


@final
@dataclass(frozen=True, slots=True)
class WeightNormed:
    """Weight under weight normalization: a direction, and a magnitude for each slice along one dimension.

    Args:
        direction: Name of the tensor that is shaped as the weight.
        magnitude: Name of the lengths.
        dim: The dimension; -1 if the whole weight has one length.
    """

    direction: str
    magnitude: str
    dim: int


def weight_name(name: str, layer: nn.Module) -> str | None:
    """Name of the parameter that a layer's weight is pruned through: of the weight, or of what it is computed from.

    A zero there must be a zero of the weight that the layer computes with.

    Args:
        name: Name of the layer.
        layer: The layer.

    Returns:
        ``None`` if there is no such parameter.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
        >>> weight_name("net.0", layer), weight_name("net.1", nn.Linear(3, 2))
        ('net.0.parametrizations.weight.original1', 'net.1.weight')
    """
    key = _original(layer)
    return None if key is None else ".".join(filter(None, (name, key)))


def weight_names(layers: Mapping[str, nn.Module]) -> list[str]:
    """``weight_name`` of each layer, by its name; of those that have one."""
    return [found for name, layer in layers.items() if (found := weight_name(name, layer)) is not None]


def bias_names(name: str) -> tuple[str, str]:
    """Names that the bias of a layer, or its original, may have."""
    prefix = f"{name}." if name else ""
    return f"{prefix}bias", f"{prefix}parametrizations.bias.original"


def pruned_weight(layer: nn.Module) -> nn.Parameter | None:
    """The parameter that ``weight_name`` names."""
    key = _original(layer)
    return None if key is None else layer.get_parameter(key)


def layer_name(weight: str) -> str:
    """Name of the layer that a weight, or an original of it, belongs to.

    Example:
        >>> layer_name("net.0.parametrizations.weight.original1"), layer_name("net.0.weight"), layer_name("0.weight_v")
        ('net.0', 'net.0', '0')
    """
    head, found, _ = f".{weight}".partition(_PARAMETRIZED)
    return head[1:] if found else weight.rpartition(".")[0]


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of a module itself, originals of computed ones among them; none of a list of originals."""
    if isinstance(module, ParametrizationList):
        return []
    lists = module.get_submodule("parametrizations").children() if is_parametrized(module) else ()
    return [parameter for part in (module, *lists) for parameter in part.parameters(recurse=False)]


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of a module's weight; empty without one.

    A parametrized weight is not computed for it: in training mode that may change the state of a parametrization.
    """
    if is_parametrized(module, "weight"):
        normed = next(_weight_normed("", module), None)
        held = module.get_parameter(normed.direction) if normed else _steps(module)._parameters.get("original")
        return tuple(held.shape) if held is not None else ()
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def scored_weight(layer: nn.Module) -> Tensor:
    """The weight whose entries are scored: as the layer computes with it, but for factors that all entries share."""
    weight = pruned_weight(layer)
    assert weight is not None
    normed = next(_weight_normed("", layer), None)
    if normed is None:
        return weight.detach()
    magnitude = layer.get_parameter(normed.magnitude).detach()
    return weight.detach() * (magnitude / torch.norm_except_dim(weight.detach(), 2, normed.dim))


def is_weight_normed(layer: nn.Module) -> bool:
    """Whether a layer's weight is a direction and its lengths."""
    return any(True for _ in _weight_normed("", layer))


def keep_directions(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let whole slices of weights under weight normalization go by their magnitude: no direction is of length 0.

    Args:
        network: The network.
        masks: Masks of its parameters, by plain name.

    Returns:
        The masks, with those of directions that would vanish moved to their magnitudes.
    """
    found = dict(masks)
    for name, module in network.named_modules():
        for normed in _weight_normed(plain_name(name), module):
            keep = found.get(normed.direction)
            if keep is None or keep.all():
                continue
            others = [dim for dim in range(keep.dim()) if dim != normed.dim]
            stays = keep.bool().any() if normed.dim == -1 else keep.bool().sum(others, keepdim=True) > 0
            found[normed.direction] = keep.bool() | ~stays
            found[normed.magnitude] = found.get(normed.magnitude, torch.ones_like(stays)).bool() & stays
    return found


def _weight_normed(name: str, module: nn.Module) -> Iterator[WeightNormed]:
    prefix = f"{name}." if name else ""
    if is_parametrized(module, "weight"):
        (*steps,) = _steps(module)
        if len(steps) == 1 and computes_weight_norm(steps[0]):
            place = f"{prefix}parametrizations.weight.original"
            yield WeightNormed(f"{place}1", f"{place}0", weight_norm_dim(steps[0]))
    for hook in module._forward_pre_hooks.values():
        if computes_weight_norm(hook) and "weight_v" in module._parameters:
            yield WeightNormed(f"{prefix}weight_v", f"{prefix}weight_g", weight_norm_dim(hook))


def _steps(layer: nn.Module, key: str = "weight") -> ParametrizationList:
    steps = layer.get_submodule(f"parametrizations.{key}")
    assert isinstance(steps, ParametrizationList)
    return steps


def _original(layer: nn.Module) -> str | None:
    if is_parametrized(layer, "bias") and not _keeps_zeros(_steps(layer, "bias")):
        return None  # a row without weights would go on returning its bias
    if "weight" in layer._parameters:
        return "weight"
    normed = next(_weight_normed("", layer), None)
    if normed is not None:
        return normed.direction
    if is_parametrized(layer, "weight"):
        return "parametrizations.weight.original" if _keeps_zeros(_steps(layer)) else None
    hooks = layer._forward_pre_hooks.values()
    is_known = any(computes_spectral_norm(hook) or is_pruned_by_torch(hook) for hook in hooks)
    return "weight_orig" if is_known and "weight_orig" in layer._parameters else None


@torch.no_grad()
def _keeps_zeros(steps: ParametrizationList) -> bool:
    """Whether zeros of the one original, and of nothing else, are zeros of what is computed from it."""
    if not steps.is_tensor or "original" not in steps._parameters:
        return False
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(steps).eval()
    original = twin.get_parameter("original")
    for _ in range(3):
        values = torch.randn(original.shape, generator=generator)
        gone = torch.rand(original.shape, generator=generator) < 0.5
        original.copy_(values.masked_fill(gone, 0.0))
        computed = twin()
        if computed.shape != original.shape or bool(computed.cpu()[gone].any()):
            return False
    return True
