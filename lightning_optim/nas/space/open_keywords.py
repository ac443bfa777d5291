"""Keywords of a layer's factory that the place where the layer goes can tell."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import pytree


def open_keywords(factory: Callable[..., nn.Module], call: ModuleCall) -> dict[str, int]:
    """Return ``in_channels``, ``out_channels`` and ``stride``, as far as a factory takes them and leaves them open.

    Args:
        factory: A class, a function, or a ``partial`` of one, whose keywords are not open.
        call: What goes into and comes out of the module whose place it is for: maps ``[B, C, sizes ...]``.

    Example:
        >>> import torch
        >>> call = ModuleCall((torch.ones(1, 4, 8, 8),), {}, torch.ones(1, 6, 4, 4))
        >>> open_keywords(functools.partial(nn.Conv2d, kernel_size=1), call)
        {'in_channels': 4, 'out_channels': 6, 'stride': 2}
        >>> open_keywords(functools.partial(nn.Conv2d, 4, kernel_size=1, stride=1), call)
        {'out_channels': 6}
    """
    given = next((leaf for leaf in call.args if isinstance(leaf, Tensor)), None)
    returned = next((leaf for leaf in pytree.tree_leaves(call.output) if isinstance(leaf, Tensor)), None)
    if given is None or returned is None or given.dim() < 3 or returned.dim() != given.dim():
        return {}
    stride = max(1, round(given.shape[-1] / returned.shape[-1]))
    told = {"in_channels": given.shape[1], "out_channels": returned.shape[1], "stride": stride}
    settled: dict[str, Any] = factory.keywords if isinstance(factory, functools.partial) else {}
    try:
        names = inspect.signature(factory).parameters.keys() - settled.keys()
    except ValueError:  # a class of an extension may not tell
        return {}
    return {name: value for name, value in told.items() if name in names}
