"""Tensors at full size that a LightningModule still holds once channels of its network are gone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_optim.surgery.resize import sizes_of
from lightning_optim.surgery.select import named_modules, submodule

_NAMED = 3


def warn_of_full_size(pl_module: LightningModule, network_name: str, cut: Mapping[str, Any], error: str) -> None:
    """Name what may have made a fit fail over a size: tensors shaped as the network's were before channels went.

    Args:
        pl_module: The module.
        network_name: Where its network is.
        cut: What has been removed from that.
        error: The text of the error.
    """
    if not cut or not re.search("size|shape", error):
        return
    network = submodule(pl_module, network_name)
    shapes = {shape: name for name in cut if len(shape := _full_size(network, name, cut[name])) > 1}
    own = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    found = {
        name: shapes[tuple(tensor.shape)]
        for name, tensor in _tensors(pl_module)
        if id(tensor) not in own and tuple(tensor.shape) in shapes
    }
    if found:
        texts = [f"{name} is shaped as {found[name]!r} was" for name in found]
        more = f"; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
        rank_zero_warn(
            f"channels of {network_name or type(pl_module).__name__!r} were removed, while {'; '.join(texts[:_NAMED])}"
            f"{more}: if the training compares the two, keep them in a copy of the network (copy.deepcopy) and give "
            "that to PruningScheduler.follow"
        )


def _full_size(network: nn.Module, name: str, cuts: Sequence[tuple[int, Tensor, int]]) -> tuple[int, ...]:
    original = {dim: size for dim, _, size in cuts}
    return tuple(original.get(dim, size) for dim, size in enumerate(sizes_of(network, name)))


def _tensors(pl_module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the modules hold, also in lists and dicts of theirs, by where it is."""
    for prefix, module in {"": pl_module, **named_modules(pl_module)}.items():
        for name, value in vars(module).items():
            if name != "_modules":
                yield from _within(prefix if name in ("_parameters", "_buffers") else f"{prefix}.{name}", value)


def _within(place: str, value: Any, depth: int = 2) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place.strip("."), value
    elif isinstance(value, nn.Module):
        yield from ((f"{place}.{name}".strip("."), tensor) for name, tensor in value.state_dict().items())
    elif isinstance(value, list | tuple | dict) and depth:
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _within(f"{place}.{key}", held, depth - 1)
