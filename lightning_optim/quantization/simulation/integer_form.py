"""Integer forms of operators: which of their calls have one.

Each function takes the name and the arguments of a call; its answer is empty if the call has an integer form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_PRODUCTS = frozenset({"matmul", "bmm", "mm"})

NO_PRODUCT = "no integer kernel for this kind of product"
"""Why a recurrent or bilinear layer, and some products of tensors, compute in floating point."""

NO_TRANSPOSED = "no integer kernel for transposed convolutions"
"""Why these compute in floating point."""


def is_real(value: object) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def why_layer_is_float(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why a convolution or a linear layer has no integer form: it needs a real input, and not to be transposed.

    Example:
        >>> why_layer_is_float("conv_transpose2d", (), {})
        'no integer kernel for transposed convolutions'
    """
    if "transpose" in name:
        return NO_TRANSPOSED
    return "" if args and is_real(args[0]) else "its input is not a real tensor"


def why_matmul_is_float(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why a matrix product has no integer form: it needs two real operands, and to be no more than a product."""
    if name.strip("_") not in _PRODUCTS:
        return NO_PRODUCT
    return "" if _are_two_real(args) else "its operands are not two real tensors"


def why_add_is_float(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why a sum has no integer form: it needs two real operands that count once each.

    Example:
        >>> import torch
        >>> why_add_is_float("add", (torch.ones(2), 1.0), {})
        'its operands are not two real tensors'
    """
    if not _are_two_real(args):
        return "its operands are not two real tensors"
    return "it multiplies an operand" if kwargs.get("alpha", 1) != 1 else ""


def why_pool_is_float(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why an average pooling has no integer form: every output must be the mean of as many values of an image.

    Example:
        >>> import torch
        >>> why_pool_is_float("avg_pool3d", (torch.ones(1, 2, 4, 4, 4),), {})
        'it does not average an image over windows of one size'
    """
    if not _has_equal_windows(name, args, kwargs):
        return "it does not average an image over windows of one size"
    return _why_windows_are_float(args, kwargs) if name == "avg_pool2d" else ""


def why_concatenate_is_float(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why a concatenation has no integer form: it needs real parts."""
    return "" if all(is_real(part) for part in args[0]) else "its parts are not real tensors"


def why_relu_is_float(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why a ReLU has no integer form: its lower bound must be zero."""
    is_two_sided = name.startswith("hardtanh") and _bounds(args, kwargs)[0] != 0
    return "it does not begin at zero" if is_two_sided else ""


def upper_bound(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return where a ReLU levels off; ``None`` if it does not.

    Example:
        >>> upper_bound("relu6", (), {}), upper_bound("hardtanh", (), {"min_val": 0.0, "max_val": 4.0})
        (6.0, 4.0)
    """
    if name.startswith("hardtanh"):
        return _bounds(args, kwargs)[1]
    return 6.0 if name == "relu6" else None


def _are_two_real(args: Sequence[Any]) -> bool:
    return len(args) == 2 and is_real(args[0]) and is_real(args[1])


def _bounds(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, float]:
    low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
    return float(low), float(args[2] if len(args) > 2 else kwargs.get("max_val", 1.0))


def _why_windows_are_float(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = dict(zip(names, args[1:], strict=False)) | dict(kwargs)
    if given.get("divisor_override") is not None:
        return "it divides by a number of its own"
    padding, counts_padding = given.get("padding", 0), given.get("count_include_pad", True)
    is_padded = counts_padding and any(padding if isinstance(padding, (tuple, list)) else (padding,))
    return "its windows reach beyond what is padded" if given.get("ceil_mode") and is_padded else ""


def _has_equal_windows(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if not is_real(args[0]):
        return False
    if name == "mean":
        return _is_global_mean(args, kwargs)
    if name.startswith("adaptive"):
        size = args[1] if len(args) > 1 else kwargs["output_size"]
        has_batch = args[0].dim() == int(name[-2]) + 2
        return has_batch and all(each == 1 for each in (size if isinstance(size, (tuple, list)) else (size,)))
    return name == "avg_pool2d" and args[0].dim() == 4


def _is_global_mean(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of ``mean`` averages an image or a volume over its sides, or ``[B, T, C]`` over its tokens."""
    axes = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = args[0].dim()
    if kwargs.get("dtype") is not None or dims not in (3, 4, 5):
        return False
    averaged = {axis % dims for axis in (axes if isinstance(axes, (tuple, list)) else [axes]) if axis is not None}
    return averaged == ({1} if dims == 3 else {*range(2, dims)})
