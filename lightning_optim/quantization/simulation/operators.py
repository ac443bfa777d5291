"""Operators: what each torch function is to a quantized network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, final

from lightning_optim.quantization.simulation.integer_form import (
    why_add_is_float,
    why_concatenate_is_float,
    why_layer_is_float,
    why_matmul_is_float,
    why_pool_is_float,
    why_relu_is_float,
)


@final
class Role(Enum):
    """Role of an operator: how it treats integers."""

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
    Role.CONVOLUTION: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    Role.LINEAR: "linear",
    Role.MATMUL: (
        "matmul bmm mm __matmul__ addmm baddbmm addbmm mv addmv einsum tensordot bilinear "
        "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
    ),
    Role.ADD: "add add_ __add__ __radd__ __iadd__",
    Role.POOL: "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d mean",
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
_ATTRIBUTES = frozenset({"T", "mT", "H", "mH"})

NO_KERNEL = "no integer kernel"
"""Why an operator computes in floating point that is none of the above, or has no integer form where it stands."""


@final
class CalledOperator(NamedTuple):  # not a frozen dataclass: that would take three times as long to make
    """Operator as one call of a torch function names it.

    Args:
        name: Name of the function, or of the attribute that is read.
        role: How the operator treats integers.
        is_in_place: Whether the call changes its first argument.
        why_float: Why this call computes in floating point; empty if it does not, or computes nothing.
    """

    name: str
    role: Role
    is_in_place: bool
    why_float: str


def classify(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> CalledOperator:
    """Classify a call of a torch function by the function's name and the arguments.

    Args:
        function: What a ``TorchFunctionMode`` sees.
        args: Its positional arguments, the first of its tensors among them.
        kwargs: Its keyword arguments.

    Example:
        >>> import torch
        >>> classify(torch.add, (torch.ones(2), torch.ones(2)), {})
        CalledOperator(name='add', role=<Role.ADD: 'add'>, is_in_place=False, why_float='')
        >>> classify(torch.add, (torch.ones(2), 1.0), {}).why_float
        'its operands are not two real tensors'
        >>> classify(torch.Tensor.mT.__get__, (torch.ones(2, 2),), {}).role
        <Role.MOVE: 'move'>
        >>> classify(torch.erf, (torch.ones(2),), {}).why_float
        'no integer kernel'
    """
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        return _ATTRIBUTE_READS.get(getattr(getattr(function, "__self__", None), "__name__", ""), _INSPECTION)
    known = _KNOWN.get(name)
    if known is None:
        return CalledOperator(name, Role.OTHER, _is_in_place(name, kwargs), NO_KERNEL)
    find_reason = _REASONS.get(known.role)
    why_float = "" if find_reason is None else find_reason(name, args, kwargs)
    if not why_float and "inplace" not in kwargs:
        return known
    return CalledOperator(name, known.role, _is_in_place(name, kwargs), why_float)


def _is_in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    if name.startswith("__"):
        return name.startswith("__i") and name.endswith("__")
    return name.partition(".")[0].endswith("_") or kwargs.get("inplace") is True  # or one of torch.ops.aten


_REASONS: dict[Role, Callable[[str, Sequence[Any], Mapping[str, Any]], str]] = {
    Role.CONVOLUTION: why_layer_is_float,
    Role.LINEAR: why_layer_is_float,
    Role.MATMUL: why_matmul_is_float,
    Role.ADD: why_add_is_float,
    Role.POOL: why_pool_is_float,
    Role.CONCATENATE: why_concatenate_is_float,
    Role.RELU: why_relu_is_float,
}
_KNOWN = {
    name: CalledOperator(name, role, _is_in_place(name, {}), "")
    for role, names in _NAMES.items()
    for name in names.split()
}
_ATTRIBUTE_READS = {name: CalledOperator(name, Role.MOVE, is_in_place=False, why_float="") for name in _ATTRIBUTES}
_INSPECTION = CalledOperator("__get__", Role.INSPECT, is_in_place=False, why_float="")
