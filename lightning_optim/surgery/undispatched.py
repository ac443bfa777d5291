"""Functions that torch has written in Python, opened for a mode: it sees the functions that they call."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch.nn import functional


def without_dispatch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function that torch has written in Python, so that it does not hand itself to a mode or a subclass."""
    assert isinstance(function, FunctionType)
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


multi_head_attention_forward = without_dispatch(functional.multi_head_attention_forward)
"""What ``nn.MultiheadAttention`` calls."""
