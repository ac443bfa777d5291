"""Composite functions: torch functions that hold matrix products, opened so that each product is seen by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_optim.quantization.simulation.contraction import contraction_of
from lightning_optim.surgery.undispatched import multi_head_attention_forward


def opened(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return what calls the parts of a composite function one by one; ``None`` if a call has no such parts.

    Example:
        >>> left, right = torch.ones(1, 3), torch.ones(3, 2)
        >>> opened(torch.addmm, (torch.ones(2), left, right), {})(torch.ones(2), left, right)
        tensor([[4., 4.]])
        >>> opened(torch.mm, (left, right), {}) is None
        True
    """
    find = _FOUND.get(function)
    if find is None or "out" in kwargs:
        return None
    return find(args)


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


def _find_einsum(args: Sequence[Any]) -> Callable[..., Any] | None:
    contraction = contraction_of(args)
    return None if contraction is None else contraction.run


def _find_attention(args: Sequence[Any]) -> Callable[..., Any] | None:
    """Attention without an axis of heads gets one, which files need; with it, it stays a function of its own."""
    return _attention_of_one_head if all(isinstance(each, Tensor) and each.dim() == 3 for each in args[:3]) else None


def _attention_of_one_head(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **settings: Any
) -> Tensor:
    mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.dim() == 3 else attn_mask
    query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    return functional.scaled_dot_product_attention(query, key, value, mask, *args, **settings).squeeze(1)


_FOUND: dict[Callable[..., Any], Callable[[Sequence[Any]], Callable[..., Any] | None]] = {
    functional.multi_head_attention_forward: lambda _: multi_head_attention_forward,
    functional.scaled_dot_product_attention: _find_attention,
    torch.einsum: _find_einsum,
    **dict.fromkeys((torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm), lambda _: _add_product),
}
