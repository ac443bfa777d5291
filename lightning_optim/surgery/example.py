"""Example inputs of a network: the arguments of one call, remembered small, for later analysis."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import nn

from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import pytree

_ROWS = 2


@final
class ExampleInputs:
    """The arguments of one real call of a network, cut to two rows of the batch.

    Two rows and not one: a dimension of size one looks like a broadcast.
    """

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._patches = Patches()
        self._is_known = False

    def __bool__(self) -> bool:
        return self._is_known

    def watch(self, network: nn.Module) -> None:
        """Remember the arguments of the next call of ``network``."""
        self._patches.undo()
        self._patches.wrap(network, "forward", self._forward)

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the arguments of a call."""
        self.args, self.kwargs = first_rows((args, kwargs))
        self._is_known = True

    def release(self) -> None:
        """Stop watching."""
        self._patches.undo()

    def state_dict(self) -> dict[str, Any]:
        """The arguments; tensors and primitives if those of the network are."""
        return {"args": self.args, "kwargs": self.kwargs, "is_known": self._is_known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.args, self.kwargs = tuple(state["args"]), dict(state["kwargs"])
        self._is_known = state["is_known"]

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._is_known:
            self.note(args, kwargs)
        return original(*args, **kwargs)


def first_rows(inputs: Any) -> Any:
    """Cut every tensor that has the batch dimension of the first one to two rows, detached copies.

    Example:
        >>> first_rows((torch.zeros(8, 3), torch.zeros(4)))[0].shape
        torch.Size([2, 3])
    """
    tensors = [leaf for leaf in pytree.tree_flatten(inputs)[0] if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    batch = tensors[0].shape[0] if tensors else 0

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        is_batched = leaf.dim() > 0 and leaf.shape[0] == batch
        return (leaf[:_ROWS] if is_batched else leaf).detach().clone()

    return pytree.tree_map(cut, inputs)
