"""Resizing of a full-size model to the shape of one that was cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.bypass import Bypass
from lightning_optim.surgery.cut import CutPlan, apply_cut
from lightning_optim.surgery.select import submodule


def sizes_of(network: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of a tensor, or the value of an integer attribute, which counts as one dimension; empty for nothing.

    A module counts as one dimension of length 1, or of length 0 where zeros stand in for it.
    """
    path, _, key = name.rpartition(".")
    held = getattr(submodule(network, path), key, None)
    if isinstance(held, Tensor):
        return tuple(held.shape)
    if isinstance(held, nn.Module):
        return (int(not isinstance(held, Bypass)),)
    return (held,) if isinstance(held, int) else ()


def resize(network: nn.Module, cut: Mapping[str, Any]) -> None:
    """Cut a network as a record says; what has been cut already stays.

    Args:
        network: Changed in place, or not at all.
        cut: By tensor or integer attribute of the network, its cuts ``[dim, kept positions, original size]``.

    Raises:
        ArtefactError: If the record is of a network of other widths.

    Example:
        >>> import torch
        >>> layer = nn.Linear(3, 2)
        >>> resize(layer, {"weight": [[1, torch.tensor([0, 2]), 3]]})
        >>> layer.in_features
        2
    """
    plan: CutPlan = {}
    for name, cuts in cut.items():
        for dim, kept, size in cuts:
            sizes = sizes_of(network, name)
            found = sizes[dim] if dim < len(sizes) else None
            if found == size:
                plan.setdefault(name, []).append((dim, kept))
            elif found != len(kept):
                raise ArtefactError(
                    f"the checkpoint was cut from a model whose {name!r} has {size} entries in dimension {dim}, "
                    f"but this model has {found}: is it another model's checkpoint?"
                )
    if plan:
        apply_cut(network, plan)
