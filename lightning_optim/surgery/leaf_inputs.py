"""Inputs of a network that its output can be differentiated by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from lightning_optim.surgery.containers import map_tensors
from lightning_optim.surgery.patch import Patches


@final
class LeafInputs:
    """Inputs in floating point that require a gradient, in the calls of one network while it is open.

    An input that requires none is handed on as a leaf that shares its memory; the caller's tensor stays as it is.

    Example:
        >>> import torch
        >>> layer, seen, inputs = nn.Linear(2, 1), [], LeafInputs()
        >>> _ = layer.register_forward_hook(lambda _, args, __: seen.append(args[0].requires_grad))
        >>> inputs.open(layer, is_root=False)
        >>> _ = layer(torch.ones(3, 2))
        >>> inputs.close()
        >>> _ = layer(torch.ones(3, 2))
        >>> seen
        [True, False]
    """

    def __init__(self) -> None:
        self._patches = Patches()
        self._remove: Callable[[], None] | None = None

    def open(self, network: nn.Module, *, is_root: bool) -> None:
        """Begin with the next call.

        Args:
            network: The network.
            is_root: Whether it is the LightningModule, whose hooks fire a second time under DDP.
        """
        self.close()
        if is_root:
            self._patches.wrap(network, "forward", _with_leaves)
        else:
            self._remove = network.register_forward_pre_hook(_leaves, with_kwargs=True).remove

    def close(self) -> None:
        """End; a second call does nothing."""
        self._patches.undo()
        if self._remove is not None:
            self._remove()
            self._remove = None


def _with_leaves(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    args, kwargs = _leaves(None, args, kwargs)
    return original(*args, **kwargs)


def _leaves(_: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return map_tensors(_as_leaf, args), map_tensors(_as_leaf, kwargs)


def _as_leaf(tensor: Tensor) -> Tensor:
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()
