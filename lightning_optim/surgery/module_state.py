"""State of a module beside its parameters: buffers, metrics, counters and lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, tuple, type(None))
_OF_TORCH = frozenset(vars(nn.Module()))


@final
class ModuleState:
    """Buffers of a module, and numbers, tensors and lists in the attributes of all modules below it, to go back to.

    Among these are batch-norm statistics, and what metrics of torchmetrics have counted. A tensor that belongs to a
    graph is held and not copied; so are the entries of a list.

    Args:
        root: The module.
        spared: Names of attributes that are not looked at.
        tensors: Whether buffers and other tensors count: those that a graph has saved must not be written to.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> state = ModuleState(norm)
        >>> _ = norm(torch.ones(3, 2))
        >>> state.put_back()
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """

    def __init__(self, root: nn.Module, spared: Collection[str] = (), *, tensors: bool = True) -> None:
        self._kept = [
            (home, name, value, _copied(value))
            for part in root.modules()
            for home, name, value in _found(part, spared)
            if tensors or not isinstance(value, Tensor)
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Let everything be as it was: the same objects, with the same content."""
        for home, name, value, content in self._kept:
            if isinstance(value, list):
                value[:] = content
            elif content is not value:
                value.copy_(content)
            home[name] = value


def _found(part: nn.Module, spared: Collection[str]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    buffers: dict[str, Any] = part._buffers
    for name, value in buffers.items():
        yield buffers, name, value
    own = vars(part)
    for name, value in own.items():
        if name not in _OF_TORCH and name not in spared and isinstance(value, (Tensor, list, *_PLAIN)):
            yield own, name, value


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return value[:]
    if not isinstance(value, Tensor) or value.grad_fn is not None or value.is_inference():
        return value  # what was made in inference mode cannot change outside
    return value.detach().clone()
