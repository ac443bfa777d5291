"""Operators: what each torch function is to a quantized network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, final

from torch import Tensor


@final
class Role(Enum):
    """How an operator treats integers."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    MATMUL = "matmul"
    ADD = "add"
    POOL = "pool"
    CONCATENATE = "concatenate"
    RELU = "relu"
    NORM = "batch norm"
    MOVE = "move"  # the output holds values of the input: views, max-pooling, dropout
    INSPECT = "inspect"  # looks at a tensor, and computes nothing
    WRITE = "write"  # changes part of its first argument
    OTHER = "other"  # computes in floating point

    __hash__ = object.__hash__  # members are single, and looked up for every torch function of a forward pass


INTEGER_ROLES = frozenset(
    {Role.CONVOLUTION, Role.LINEAR, Role.MATMUL, Role.ADD, Role.POOL, Role.CONCATENATE},
)
WEIGHTED_ROLES = frozenset({Role.CONVOLUTION, Role.LINEAR})

_NAMES: dict[Role, str] = {
    Role.CONVOLUTION: "conv1d conv2d conv3d",
    Role.LINEAR: "linear",
    Role.MATMUL: "matmul bmm mm __matmul__",
    Role.ADD: "add add_ __add__ __radd__ __iadd__",
    Role.POOL: "adaptive_avg_pool2d avg_pool2d mean",
    Role.CONCATENATE: "cat concat concatenate",
    Role.RELU: "relu relu_ relu6 hardtanh hardtanh_",
    Role.NORM: "batch_norm",
    Role.MOVE: (
        "flatten unflatten view view_as reshape reshape_as permute transpose swapaxes movedim t T mT H mH contiguous "
        "squeeze unsqueeze expand expand_as chunk split unbind narrow select __getitem__ max_pool1d max_pool2d detach "
        "clone to float half bfloat16 double type type_as cpu cuda dropout dropout1d dropout2d dropout3d dropout_ "
        "feature_dropout alpha_dropout repeat_interleave roll flip channel_shuffle pixel_shuffle index_select gather"
    ),
    Role.INSPECT: (
        "size dim ndimension numel nelement stride storage_offset data_ptr is_floating_point is_complex is_contiguous "
        "element_size get_device storage untyped_storage __len__ __hash__ __repr__ __str__ __format__ __bool__ "
        "__contains__ item tolist numpy register_hook requires_grad_ retain_grad is_same_size is_signed "
        "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like empty_like full_like rand_like "
        "randn_like equal allclose __set__ __delete__ backward"
    ),
    Role.WRITE: "__setitem__ index_put_ copy_ index_copy_ masked_fill_ fill_ zero_",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
_ATTRIBUTES = frozenset({"T", "mT", "H", "mH"})


def describe_function(function: Callable[..., Any]) -> tuple[str, Role]:
    """Return the name and the role of a function that a ``TorchFunctionMode`` sees.

    Example:
        >>> import torch
        >>> describe_function(torch.conv2d)
        ('conv2d', <Role.CONVOLUTION: 'convolution'>)
        >>> describe_function(torch.Tensor.mT.__get__)
        ('mT', <Role.MOVE: 'move'>)
        >>> describe_function(torch.erf)
        ('erf', <Role.OTHER: 'other'>)
    """
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        attribute = getattr(getattr(function, "__self__", None), "__name__", "")
        return (attribute, Role.MOVE) if attribute in _ATTRIBUTES else (name, Role.INSPECT)
    return name, _ROLES.get(name, Role.OTHER)


def is_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes its first argument.

    Example:
        >>> is_in_place("add_", {}), is_in_place("relu", {"inplace": True}), is_in_place("__add__", {})
        (True, True, False)
    """
    if name.startswith("__"):
        return name.startswith("__i") and name.endswith("__")
    return name.partition(".")[0].endswith("_") or kwargs.get("inplace") is True  # or one of torch.ops.aten


def is_real(value: object) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def why_float(name: str, role: Role, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Return why this call of an operator has no integer form; empty if it has one.

    Example:
        >>> import torch
        >>> why_float("add", Role.ADD, (torch.ones(2), 1.0), {})
        'its operands are not two real tensors'
    """
    if role in (Role.ADD, Role.MATMUL) and not (len(args) == 2 and is_real(args[0]) and is_real(args[1])):
        return "its operands are not two real tensors"
    if role is Role.ADD and kwargs.get("alpha", 1) != 1:
        return "it multiplies an operand"
    if role is Role.POOL and not _pools_integers(name, args, kwargs):
        return "its windows are not of one size"
    if role in WEIGHTED_ROLES and not (args and is_real(args[0])):
        return "its input is not a real tensor"
    if role is Role.CONCATENATE and not all(is_real(part) for part in args[0]):
        return "its parts are not real tensors"
    is_two_sided = role is Role.RELU and name.startswith("hardtanh") and _bounds(args, kwargs)[0] != 0
    return "it does not begin at zero" if is_two_sided else ""


def upper_bound(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """Return where a call of the role ``RELU`` levels off; ``None`` if it does not.

    Example:
        >>> upper_bound("relu6", (), {}), upper_bound("hardtanh", (), {"min_val": 0.0, "max_val": 4.0})
        (6.0, 4.0)
    """
    if name.startswith("hardtanh"):
        return _bounds(args, kwargs)[1]
    return 6.0 if name == "relu6" else None


def _bounds(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, float]:
    low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
    return float(low), float(args[2] if len(args) > 2 else kwargs.get("max_val", 1.0))


def _pools_integers(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if not is_real(args[0]):
        return False
    if name == "mean":
        return is_global_mean(args, kwargs)
    if args[0].dim() != 4:
        return False
    if name == "adaptive_avg_pool2d":
        size = args[1] if len(args) > 1 else kwargs["output_size"]
        return size in (1, (1, 1), [1, 1])
    return True


def is_global_mean(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a call of ``mean`` averages an image over height and width, or ``[B, T, C]`` over its tokens."""
    axes = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = args[0].dim()
    if kwargs.get("dtype") is not None or dims not in (3, 4):
        return False
    averaged = {axis % dims for axis in (axes if isinstance(axes, (tuple, list)) else [axes]) if axis is not None}
    return averaged == ({1} if dims == 3 else {2, 3})
