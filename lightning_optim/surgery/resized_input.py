"""Images resized before they go into a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_optim.surgery.torch_private import pytree

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@final
class ResizedInput:
    """Hook that resizes what goes into a network; a copy or a pickle of the network has it too.

    Args:
        size: Positions in each dimension behind samples and channels.

    Example:
        >>> import torch
        >>> net = nn.Flatten()
        >>> _ = net.register_forward_pre_hook(ResizedInput((2, 2)), with_kwargs=True)
        >>> net(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 12])
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with its images resized."""
        return resized(args, kwargs, self.size)


def image_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Positions of the images that go into a call, in each dimension; ``None`` if none do.

    Images are the first floating-point tensor of samples, channels and one to three dimensions behind.

    Example:
        >>> import torch
        >>> image_size((torch.ones(2, 3, 8, 6),), {})
        (8, 6)
    """
    images = _images(pytree.tree_leaves((args, dict(kwargs))))
    return None if images is None else tuple(images.shape[2:])


def resized(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], size: tuple[int, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with its images at another size, by linear interpolation.

    Interpolation is without an antialiasing filter, which few runtimes know.

    Example:
        >>> import torch
        >>> args, _ = resized((torch.ones(2, 3, 8, 6),), {}, (4, 3))
        >>> args[0].shape
        torch.Size([2, 3, 4, 3])
    """
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    images = _images(leaves)
    if images is None or tuple(images.shape[2:]) == size:
        return args, dict(kwargs)
    changed = F.interpolate(images, size=size, mode=_MODES[len(size)])
    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(
        [changed if leaf is images else leaf for leaf in leaves], structure
    )
    return found


def _images(leaves: Sequence[Any]) -> Tensor | None:
    tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor))
    return next((leaf for leaf in tensors if leaf.is_floating_point() and leaf.dim() - 2 in _MODES), None)
