"""Evaluation mode for a while, whatever mode each module is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def evaluated(module: Module) -> Module:
    """Set evaluation mode and return the module; what ``torch.export`` has captured stays as it was captured.

    Example:
        >>> evaluated(nn.Dropout()).training
        False
    """
    with suppress(NotImplementedError):
        module.eval()
    return module


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is back in its own mode.

    Args:
        module: The module, with all below it. A frozen part may be in evaluation while the rest trains.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(net):
        ...     net[0].training
        False
        >>> net[0].training, net[1].training
        (True, False)
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
