"""Composite functions: torch functions that hold matrix products, opened so that each product is seen by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def opened(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return what calls the parts of a composite function one by one; ``None`` if it is none, or writes to ``out``.

    Example:
        >>> opened(torch.addmm, {})(torch.ones(2), torch.ones(1, 3), torch.ones(3, 2))
        tensor([[4., 4.]])
        >>> opened(torch.mm, {}) is None
        True
    """
    return None if "out" in kwargs else _OPENED.get(function)


def _add_product(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * added + alpha * (left @ right)``; a linear layer, if it is one with its weight ``[I, O]``."""
    is_plain = beta == alpha == 1
    if is_plain and isinstance(added, nn.Parameter) and isinstance(right, nn.Parameter) and added.dim() == 1:
        return functional.linear(left, right.t(), added)
    product = torch.matmul(left, right)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return torch.add(product, added if beta == 1 else added * beta)


def _without_dispatch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function that torch has written in Python, so that it does not hand itself to a mode or a subclass."""
    assert isinstance(function, FunctionType)
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.multi_head_attention_forward: _without_dispatch(functional.multi_head_attention_forward),
    **dict.fromkeys((torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm), _add_product),
}
