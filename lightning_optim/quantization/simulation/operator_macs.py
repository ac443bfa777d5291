"""Multiply-accumulates (MACs) of one call of a torch function, from the shapes of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from lightning_optim.surgery.torch_private import pytree

_Count = Callable[[Sequence[Any], Tensor], int]


def operator_macs(name: str, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> int:
    """Return how many products a call adds up; 0 for functions that multiply no matrices.

    Args:
        name: Name of the torch function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it has returned.

    Example:
        >>> import torch
        >>> operator_macs("linear", (torch.ones(5, 3), torch.ones(2, 3)), {}, torch.ones(5, 2))
        30
    """
    count = _COUNTS.get(name.rstrip("_") if not name.startswith("__") else name)
    outputs = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return count([*args, *kwargs.values()], outputs[0]) if count is not None and outputs else 0


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    return [each for each in args if isinstance(each, Tensor)]


def _convolution(args: Sequence[Any], output: Tensor) -> int:
    weight = _tensors(args)[1]
    return output.numel() * weight[0].numel()


def _transposed_convolution(args: Sequence[Any], output: Tensor) -> int:
    x, weight = _tensors(args)[:2]
    return x.numel() * weight[0].numel()


def _product(args: Sequence[Any], output: Tensor) -> int:
    return output.numel() * _tensors(args)[0].shape[-1]


def _added_product(args: Sequence[Any], output: Tensor) -> int:
    return output.numel() * _tensors(args)[1].shape[-1]


def _summed_products(args: Sequence[Any], output: Tensor) -> int:
    left = _tensors(args)[1]
    return output.numel() * left.shape[0] * left.shape[-1]


def _attention(args: Sequence[Any], output: Tensor) -> int:
    query, key, value = _tensors(args)[:3]
    return output[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _bilinear(args: Sequence[Any], output: Tensor) -> int:
    return output.numel() * _tensors(args)[2][0].numel()


def _recurrent(args: Sequence[Any], output: Tensor) -> int:
    x = _tensors(args)[0]
    return x[..., 0].numel() * sum(each.numel() for each in _matrices(args))


def _recurrent_cell(args: Sequence[Any], output: Tensor) -> int:
    return output.shape[0] * sum(each.numel() for each in _tensors(args)[-4:] if each.dim() == 2)


def _matrices(args: Sequence[Any]) -> Iterable[Tensor]:
    """Weights of a recurrent layer: they are listed, in one argument."""
    lists = [each for each in args if isinstance(each, (list, tuple))]
    return (each for each in max(lists, key=len, default=()) if isinstance(each, Tensor) and each.dim() == 2)


def _einsum(args: Sequence[Any], output: Tensor) -> int:
    terms = str(args[0]).replace(" ", "").partition("->")[0].split(",")
    operands = [leaf for leaf in pytree.tree_leaves(list(args[1:])) if isinstance(leaf, Tensor)]
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=False):
        before, _, after = term.partition("...")
        sizes.update(zip(before, operand.shape, strict=False))
        sizes.update(zip(reversed(after), reversed(operand.shape), strict=False))
        spread = operand.shape[len(before) : operand.dim() - len(after)] if "..." in term else ()
        sizes.update({str(place): size for place, size in enumerate(reversed(spread)) if size > 1})
    return math.prod(sizes.values()) * (len(operands) - 1)


def _tensordot(args: Sequence[Any], output: Tensor) -> int:
    left, right = _tensors(args)[:2]
    return output.numel() * math.isqrt(left.numel() * right.numel() // max(1, output.numel()))


_KINDS: dict[_Count, str] = {
    _convolution: "conv1d conv2d conv3d",
    _transposed_convolution: "conv_transpose1d conv_transpose2d conv_transpose3d",
    _product: "linear matmul bmm mm mv dot inner __matmul__ __rmatmul__",
    _added_product: "addmm baddbmm addmv",
    _summed_products: "addbmm",
    _attention: "scaled_dot_product_attention",
    _bilinear: "bilinear",
    _recurrent: "lstm gru rnn_tanh rnn_relu",
    _recurrent_cell: "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    _einsum: "einsum",
    _tensordot: "tensordot",
}
_COUNTS = {name: count for count, names in _KINDS.items() for name in names.split()}
