"""Pass-through: what a block was given comes out of its place, without computing."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import pytree


@final
class PassThrough(nn.Module):
    """Pass-through in the place of a block whose output is shaped as its input; it has no parameters and no buffers.

    Args:
        returned: For each value that the block returned, which of the tensors given to it comes out there; -1 is
            ``None``.
        is_tuple: Whether the block returned a tuple, and not one tensor.

    Example:
        >>> import torch
        >>> PassThrough(returned=(0, -1), is_tuple=True)(torch.ones(1), scale=2)
        (tensor([1.]), None)
    """

    def __init__(self, *, returned: tuple[int, ...], is_tuple: bool) -> None:
        super().__init__()
        self.returned, self.is_tuple = returned, is_tuple

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what was given."""
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        values = tuple(None if place < 0 else given[place] for place in self.returned)
        return values if self.is_tuple else values[0]


def pass_through_of(call: ModuleCall) -> PassThrough | None:
    """Pass-through for a block that was called so; ``None`` if its output is not shaped as its first tensor.

    A block may hand on other tensors that it was given, beside the one that it computes, and return ``None``.

    Example:
        >>> import torch
        >>> x, mask = torch.ones(2, 3), torch.ones(3)
        >>> pass_through_of(ModuleCall((x, mask), {}, (x + 1, mask, None))).returned
        (0, 1, -1)
        >>> pass_through_of(ModuleCall((x,), {}, x[:1]))
    """
    given = [leaf for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
    is_tuple = type(call.output) is tuple
    returned: list[int] = []
    for value in call.output if is_tuple else (call.output,):
        passed = [place for place, tensor in enumerate(given) if tensor is value]
        if value is None:
            returned.append(-1)
        elif passed:
            returned.append(passed[0])
        elif 0 not in returned and given and _is_like(value, given[0]):
            returned.append(0)
        else:
            return None
    return PassThrough(returned=tuple(returned), is_tuple=is_tuple) if 0 in returned else None


def _is_like(value: Any, given: Tensor) -> bool:
    return isinstance(value, Tensor) and (value.shape, value.dtype) == (given.shape, given.dtype)
