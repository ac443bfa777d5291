"""Open shapes: which dimensions of a file's inputs may have another size than the example's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import ExportError
from lightning_optim.surgery.torch_private import pytree

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of a network."""
Dynamic = Mapping[str, Mapping[int, str]]
"""Argument of the network's forward -> its dimensions that are open, each with a name; equal names are one size."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShapes:
    """Open shapes of a file's inputs.

    Args:
        dynamic: Argument of the network's ``forward`` -> its dimensions that are open beside the batch, each with a
            name, such as ``{"images": {2: "height", 3: "width"}}``. Dimensions of one name always have one size.
        batch: Fixed size of the batch, at least 1, for code that needs a number; ``None`` leaves it open.

    Raises:
        ValueError: If a dimension is none that can be open, or ``batch`` is below 1.

    Example:
        >>> shapes = OpenShapes(dynamic={"input": {1: "time"}})
        >>> shapes.dimensions_of(nn.ReLU(), ((torch.ones(2, 7),), {}))
        [{0: 'batch', 1: 'time'}]
    """

    dynamic: Dynamic = field(default_factory=dict)
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        for argument, dims in self.dynamic.items():
            for dim, name in dims.items():
                if type(dim) is not int or dim < 1:
                    raise ValueError(
                        f"dynamic[{argument!r}] must name dimensions from 1 on, got {dim!r}: 0 is the batch, which is "
                        "open unless batch is given"
                    )
                if not name.isidentifier() or name == "batch":
                    raise ValueError(f"dynamic[{argument!r}][{dim}] must be a name other than 'batch', got {name!r}")

    def dimensions_of(self, network: nn.Module, example: Example) -> list[dict[int, str]]:
        """Return the open dimensions of every input tensor, in order, each with its name.

        Args:
            network: The network; its ``forward`` has the arguments that ``dynamic`` names.
            example: Its inputs.

        Raises:
            ExportError: If there is no such argument, or it is no tensor with such a dimension.
        """
        args, kwargs = example
        bound = inspect.signature(network.forward).bind(*args, **kwargs)
        arguments = {**bound.arguments, **bound.kwargs}
        for name in self.dynamic:
            self._check(name, arguments)
        tensors = _tensors(example)
        size = next((len(tensor) for tensor in tensors if tensor.dim()), 0)
        named = {id(arguments[name]): dims for name, dims in self.dynamic.items()}
        rows = {0: "batch"} if self.batch is None else {}
        return [
            {**(rows if tensor.dim() and len(tensor) == size else {}), **named.get(id(tensor), {})}
            for tensor in tensors
        ]

    def _check(self, name: str, arguments: Mapping[str, Any]) -> None:
        value = arguments.get(name)
        if not isinstance(value, Tensor):
            tensors = sorted(key for key, held in arguments.items() if isinstance(held, Tensor))
            raise ExportError(f"dynamic names {name!r}, which is no tensor among the network's inputs {tensors}")
        for dim in self.dynamic[name]:
            if dim >= value.dim():
                raise ExportError(f"dynamic[{name!r}] names dimension {dim}, but the input is {list(value.shape)}")

    def batches_of(self, example: Example) -> Iterator[Example]:
        """Split a batch into those that the file takes; rows are repeated where they are too few for the last one.

        Example:
            >>> [len(args[0]) for args, _ in OpenShapes(batch=2).batches_of(((torch.ones(3, 1),), {}))]
            [2, 2]
        """
        size = next((len(tensor) for tensor in _tensors(example) if tensor.dim()), 0)
        rows = self.batch
        if rows is None or not size:
            yield example
            return
        for begin in range(0, size, rows):
            yield _chosen(example, (torch.arange(rows) + begin) % size, size)

    def other_sizes(
        self, network: nn.Module, example: Example, accepts: Callable[[Example], object]
    ) -> Iterator[Example]:
        """Examples of two other sizes, twice and half as large if the network takes them, or near its own.

        Args:
            network: The network.
            example: Its inputs.
            accepts: Runs the network; whatever it raises, the size is none that the network takes.

        Raises:
            ExportError: If the network takes fewer than two other sizes.
        """
        dims = self.dimensions_of(network, example)
        by_tensor = {id(tensor): named for tensor, named in zip(_tensors(example), dims, strict=True)}
        names = {name for named in dims for dim, name in named.items() if dim}
        if not names:
            return
        found, faults = 0, []
        for change in _CHANGES:
            other = _resized(example, by_tensor, change)
            if [tensor.shape for tensor in _tensors(other)] == [tensor.shape for tensor in _tensors(example)]:
                continue
            try:
                accepts(other)
            except Exception as error:  # whatever a network raises that does not take a size
                faults.append(f"{[list(tensor.shape) for tensor in _tensors(other)]}: {error}")
                continue
            yield other
            found += 1
            if found == 2:
                return
        raise ExportError(
            f"dynamic opens {sorted(names)}, but the network takes no two sizes beside the example's; tried {faults[0]}"
        )


def open_dims(dimensions: Sequence[Mapping[int, str]]) -> list[dict[int, torch.export.Dim]] | None:
    """Dimensions for ``torch.export``, one object for each name; ``None`` if none is open."""
    names = sorted({name for named in dimensions for name in named.values()})
    dims = {name: torch.export.Dim(name) for name in names}
    return [{dim: dims[name] for dim, name in named.items()} for named in dimensions] if names else None


_CHANGES: Sequence[Callable[[int], int]] = (
    lambda size: size * 2,
    lambda size: max(2, size // 2),
    lambda size: size + 1,
    lambda size: max(2, size - 1),
    lambda size: size * 3,
)


def _tensors(example: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]


def _chosen(example: Example, places: Tensor, size: int) -> Example:
    """Rows of every tensor that has as many as the batch."""

    def choose(tensor: Tensor) -> Tensor:
        return tensor[places] if tensor.dim() and len(tensor) == size else tensor

    chosen: Example = pytree.tree_map_only(Tensor, choose, example)
    return chosen


def _resized(example: Example, open_dims: Mapping[int, Mapping[int, str]], change: Callable[[int], int]) -> Example:
    """Repeat or drop what tensors hold along open dimensions, so that their values stay those of real data.

    Args:
        example: Inputs.
        open_dims: Open dimensions of a tensor, by its identity; the batch stays.
        change: From an old to a new size.
    """

    def resize(tensor: Tensor) -> Tensor:
        sizes = {dim: change(tensor.shape[dim]) for dim in open_dims.get(id(tensor), {}) if dim}
        for dim, size in sizes.items():
            tensor = tensor.index_select(dim, torch.arange(size) % tensor.shape[dim])
        return tensor

    resized: Example = pytree.tree_map_only(Tensor, resize, example)
    return resized
