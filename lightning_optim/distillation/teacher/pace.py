"""Pace of a teacher in a number format of its own, beside that in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_optim.cost.timing import time_call
from lightning_optim.surgery.containers import map_tensors
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.inputs import Inputs

_MOST_WEIGHTS = 2**28  # a copy of more would take a gigabyte
_ROUNDS = 3


def slower_than_float32(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> tuple[float, float] | None:
    """Seconds that a teacher takes in its number format and in float32, if the first are more; on the processor alone.

    Args:
        module: The teacher, in its number format and without gradients.
        inputs: What it is given, before that is converted.
        dtype: Its number format.
    """
    weights = list(module.parameters())
    is_on_processor = all(weight.device.type == "cpu" for weight in weights)
    if not is_on_processor or sum(weight.numel() for weight in weights) > _MOST_WEIGHTS:
        return None

    def timed(network: nn.Module, kind: torch.dtype) -> float:
        args, kwargs = map_tensors(
            lambda value: value.to(kind) if value.is_floating_point() else value, (inputs.args, inputs.kwargs)
        )
        return _seconds(lambda: network(*args, **kwargs))

    own, exact = timed(module, dtype), timed(copy_model(module).float(), torch.float32)
    return (own, exact) if own > exact else None


def _seconds(call: Callable[[], Any]) -> float:
    with torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a busy machine both are as uncertain
        return time_call(call, _ROUNDS)
