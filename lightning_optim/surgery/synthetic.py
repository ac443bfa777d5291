"""Synthetic arguments of a network: a call described by kinds, shapes and ranges, and arguments made from that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.surgery.torch_private import pytree

_SEQUENCES: dict[str, Callable[..., Any]] = {"tuple": tuple, "list": list, "Size": torch.Size}
_MAPPINGS: dict[str, Callable[..., Any]] = {"dict": dict, "OrderedDict": OrderedDict}
PRIMITIVES = (bool, int, float, str, type(None))
"""Types of what a checkpoint may hold as it is."""

Description = dict[str, Any]
"""What a value is, in nested dictionaries and lists of primitives."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Filling of synthetic tensors, by their kind.

    Some networks want integers that fit one another (lengths of padded sequences), or a mask that hides nothing.

    Args:
        floats: ``"normal"``, or ``"unit"`` for the interval ``[0, 1)``.
        integers: ``"any"`` of the range that was seen, its ``"largest"`` or its ``"smallest"``.
        booleans: ``"any"``, ``"true"`` or ``"false"``.
    """

    floats: str = "normal"
    integers: str = "any"
    booleans: str = "any"


def fillings(description: Description) -> Iterator[Filling]:
    """Every filling that makes a difference to what is described, the plainest first.

    Example:
        >>> [filling.integers for filling in fillings(describe(torch.tensor([3, 9]), batch=2, rows=2))]
        ['any', 'largest', 'smallest']
    """
    kinds = {each["of"] for each in _tensors(description)}
    for floats, integers, booleans in product(
        ("normal", "unit") if "floats" in kinds else ("normal",),
        ("any", "largest", "smallest") if "integers" in kinds else ("any",),
        ("any", "true", "false") if "booleans" in kinds else ("any",),
    ):
        yield Filling(floats=floats, integers=integers, booleans=booleans)


# Describing.


def batch_of(arguments: Any) -> int:
    """Length of the first dimension of the first tensor; 0 if there is none."""
    for leaf in pytree.tree_leaves(arguments):  # a loop can be compiled by torch 2.8 too
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    return 0


def describe(value: Any, *, batch: int, rows: int, device: str = "cpu", name: str = "the value") -> Description:
    """Describe a value: of a tensor, or a number for each row, kind, shape and range alone; primitives as they are.

    Args:
        value: Tensors, primitives, and tuples, lists and dictionaries of them.
        batch: Length of the batch.
        rows: What that length becomes wherever it is a first dimension.
        device: Kind of device on which the network is; a tensor that is elsewhere is described as one of the CPU.
        name: What the value is, for the message.

    Raises:
        TypeError: If there is anything else in it, or a text for each row.

    Example:
        >>> describe(torch.tensor([3, 9, 4]), batch=3, rows=2)["high"]
        9
    """
    if isinstance(value, Tensor):
        return _describe_tensor(value, batch, rows, name) | {"is_with_network": value.device.type == device}
    numbers = _numbers(value, batch)
    if numbers is not None:
        return _describe_tensor(numbers, batch, rows, name) | {"as": type(value).__name__}
    if isinstance(value, torch.dtype):
        return {"kind": "dtype", "value": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"kind": "device"}
    if type(value) in PRIMITIVES:
        return {"kind": "primitive", "value": value}
    keys = _keys(value, batch, name)
    items = [describe(value[key], batch=batch, rows=rows, device=device, name=f"{name}[{key!r}]") for key in keys]
    return {"kind": type(value).__name__, "keys": keys, "items": items}


def _keys(value: Any, batch: int, name: str) -> list[Any]:
    """Keys of a container that can be made again."""
    if type(value) in _SEQUENCES.values():
        if len(value) == batch and any(type(item) is str for item in value):
            raise TypeError(f"{name} holds a text for each row of the batch")
        return [*range(len(value))]
    if type(value) in _MAPPINGS.values() and all(type(key) in PRIMITIVES for key in value):
        return [*value]
    raise TypeError(f"{name} is of type {type(value).__name__}, neither a tensor nor a primitive")


def _numbers(value: Any, batch: int) -> Tensor | None:
    """Tensor of a number for each row of the batch; ``None`` if it is anything else."""
    if type(value) not in (list, tuple) or len(value) != batch:
        return None
    return torch.tensor(value) if {type(item) for item in value} in ({int}, {float}, {bool}) else None


def _describe_tensor(tensor: Tensor, batch: int, rows: int, name: str) -> Description:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise TypeError(f"{name} is a tensor that is not dense")
    shape = [*tensor.shape]
    if shape and shape[0] == batch:
        shape[0] = rows
    found = {"kind": "tensor", "shape": shape, "value": str(tensor.dtype).removeprefix("torch.")}
    if tensor.dtype is torch.bool:
        return found | {"of": "booleans"}
    if tensor.is_floating_point() or tensor.is_complex():
        return found | {"of": "floats"}
    low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
    return found | {"of": "integers", "low": low, "high": high}


def _tensors(description: Description) -> Iterator[Description]:
    if description["kind"] == "tensor":
        yield description
    for item in description.get("items", ()):
        yield from _tensors(item)


# Making.


def synthesize(description: Description, filling: Filling, device: torch.device) -> Any:
    """Make a value of that description; the same one each time.

    Args:
        description: What ``describe`` said.
        filling: What tensors hold.
        device: Where they are, if they were where the network was.

    Example:
        >>> seen = describe({"x": torch.ones(8, 3), "scale": 0.5}, batch=8, rows=2)
        >>> made = synthesize(seen, Filling(), torch.device("cpu"))
        >>> made["x"].shape, made["scale"]
        (torch.Size([2, 3]), 0.5)
    """
    generator = torch.Generator().manual_seed(0)

    def make(each: Description) -> Any:
        kind = each["kind"]
        if kind == "tensor":
            return _placed(_filled(each, filling, generator), each, device)
        if "items" in each:
            items = [make(item) for item in each["items"]]
            is_mapping = kind in _MAPPINGS
            return _MAPPINGS[kind](zip(each["keys"], items, strict=True)) if is_mapping else _SEQUENCES[kind](items)
        if kind == "dtype":
            return _dtype(each)
        return device if kind == "device" else each["value"]

    return make(description)


def _placed(tensor: Tensor, description: Mapping[str, Any], device: torch.device) -> Any:
    if "as" in description:
        return _SEQUENCES[description["as"]](tensor.tolist())
    return tensor.to(device) if description["is_with_network"] else tensor


def _filled(description: Mapping[str, Any], filling: Filling, generator: torch.Generator) -> Tensor:
    """Tensor of a description on the CPU, where random numbers are the same whatever device they are for."""
    shape, dtype = description["shape"], _dtype(description)
    if description["of"] == "floats":
        draw = torch.randn if filling.floats == "normal" else torch.rand
        return draw(shape, generator=generator, dtype=dtype if dtype.is_complex else torch.float32).to(dtype)
    if description["of"] == "booleans":
        chosen = {"any": torch.rand(shape, generator=generator) < 0.5, "true": torch.ones(shape)}
        return chosen.get(filling.booleans, torch.zeros(shape)).to(dtype)
    low, high = description["low"], description["high"]
    if filling.integers == "any":
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    return torch.full(shape, high if filling.integers == "largest" else low).to(dtype)


def _dtype(description: Mapping[str, Any]) -> torch.dtype:
    dtype: torch.dtype = vars(torch)[description["value"]]
    return dtype
