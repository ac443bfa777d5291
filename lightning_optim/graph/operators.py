"""Operators of a graph by their names: what kind each is of, and what each does that a reader of graphs asks about."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

from lightning_optim.surgery.torch_private import OpOverload, schema_name


class OperatorKind(Enum):
    """Kind of operator: what it computes, in whichever number of dimensions."""

    CONVOLUTION = auto()
    GENERAL_CONVOLUTION = auto()  # an argument says whether it is transposed
    TRANSPOSED_CONVOLUTION = auto()
    LINEAR = auto()
    MATRIX_PRODUCT = auto()
    ADDED_PRODUCT = auto()
    VECTOR_PRODUCT = auto()  # as in a weight under spectral normalization
    EINSUM = auto()
    ATTENTION = auto()
    GATED_RECURRENT = auto()
    PLAIN_RECURRENT = auto()
    CHANNEL_NORM = auto()
    LAYER_NORM = auto()  # it is told the lengths that it normalizes
    WEIGHT_NORM = auto()
    SOFTMAX = auto()
    LOG_SOFTMAX = auto()
    POINTWISE = auto()  # those that PyTorch does not tag so itself
    GATE = auto()
    COPY = auto()
    CREATION = auto()
    INSPECTION = auto()
    REDUCTION = auto()
    RESAMPLING = auto()
    SHUFFLE = auto()
    VIEW = auto()
    ORDER = auto()
    REPETITION = auto()
    SHIFT = auto()
    JOIN = auto()
    PART = auto()
    LOOKUP = auto()


_NAMES = {
    OperatorKind.CONVOLUTION: "conv1d conv2d conv3d",
    OperatorKind.GENERAL_CONVOLUTION: "convolution",
    OperatorKind.TRANSPOSED_CONVOLUTION: "conv_transpose1d conv_transpose2d conv_transpose3d",
    OperatorKind.LINEAR: "linear",
    OperatorKind.MATRIX_PRODUCT: "matmul mm bmm",
    OperatorKind.ADDED_PRODUCT: "addmm",
    OperatorKind.VECTOR_PRODUCT: "mv dot vdot",
    OperatorKind.EINSUM: "einsum",
    OperatorKind.ATTENTION: "scaled_dot_product_attention",
    OperatorKind.GATED_RECURRENT: "lstm gru lstm_cell gru_cell",
    OperatorKind.PLAIN_RECURRENT: "rnn_tanh rnn_relu",
    OperatorKind.CHANNEL_NORM: "batch_norm instance_norm group_norm _native_batch_norm_legit_no_training",
    OperatorKind.LAYER_NORM: "layer_norm rms_norm",
    OperatorKind.WEIGHT_NORM: "_weight_norm _weight_norm_interface",
    OperatorKind.SOFTMAX: "softmax _softmax",
    OperatorKind.LOG_SOFTMAX: "log_softmax _log_softmax",
    OperatorKind.POINTWISE: (
        "relu6_ hardswish hardswish_ gelu_ mish_ log_sigmoid threshold_ where masked_fill masked_fill_ rsub "
        "floor_divide multiply divide subtract negative absolute arctan2 prelu"
    ),
    OperatorKind.GATE: "glu",
    OperatorKind.COPY: (
        "alias clone contiguous detach dropout dropout_ feature_dropout alpha_dropout lift_fresh_copy to "
        "_to_copy type_as"
    ),
    OperatorKind.CREATION: "zero_ fill_ zeros_like ones_like full_like new_zeros new_ones new_full new_empty",
    OperatorKind.INSPECTION: (
        "_assert_tensor_metadata _assert_async _assert_scalar sym_size sym_numel sym_constrain_range "
        "sym_constrain_range_for_size"
    ),
    OperatorKind.REDUCTION: "mean sum amax amin var std max min prod norm linalg_vector_norm logsumexp",
    OperatorKind.RESAMPLING: (
        "avg_pool1d max_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d avg_pool2d max_pool2d "
        "adaptive_avg_pool2d _adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
        "_upsample_bilinear2d_aa avg_pool3d max_pool3d adaptive_avg_pool3d upsample_nearest3d upsample_trilinear3d "
        "max_pool2d_with_indices adaptive_max_pool2d max_pool1d_with_indices adaptive_max_pool1d"
    ),
    OperatorKind.SHUFFLE: "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
    OperatorKind.VIEW: ("view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_copy view_as reshape_as"),
    OperatorKind.ORDER: (
        "permute permute_copy transpose swapaxes swapdims transpose_copy t numpy_T mT movedim moveaxis"
    ),
    OperatorKind.REPETITION: "expand expand_as repeat",
    OperatorKind.SHIFT: "roll flip cumsum constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad2d",
    OperatorKind.JOIN: "cat concat concatenate stack",
    OperatorKind.PART: (
        "unbind split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk slice narrow select"
    ),
    OperatorKind.LOOKUP: "index_select index embedding",
}

_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}

WEIGHTED = frozenset({OperatorKind.LINEAR, OperatorKind.CONVOLUTION, OperatorKind.GENERAL_CONVOLUTION})
"""Kinds that multiply an input by a weight, whose first axis is the output's channels."""

PRODUCTS = WEIGHTED | {
    OperatorKind.TRANSPOSED_CONVOLUTION,
    OperatorKind.MATRIX_PRODUCT,
    OperatorKind.ADDED_PRODUCT,
    OperatorKind.EINSUM,
    OperatorKind.ATTENTION,
    OperatorKind.GATED_RECURRENT,
}
"""Kinds whose time goes into products of matrices."""

NORMS = frozenset({OperatorKind.CHANNEL_NORM, OperatorKind.LAYER_NORM})
"""Kinds that normalize an activation, then scale it by a weight and shift it by a bias."""

TAKE_LENGTHS = frozenset({"view", "reshape", "_unsafe_view", "unflatten", "expand", "split", "chunk"})
"""Names of operators that take lengths or numbers of parts, which a module's code may hold as attributes."""

# Names of operators that keep every position of an operand, in another order or shape.
_REARRANGE = frozenset({"permute", "transpose", "squeeze", "unsqueeze"})

KEEP_ZERO = _REARRANGE | {"mul", "div", "neg", "dropout", "relu", "gelu", "silu", "tanh", "clone", "contiguous", "to"}
KEEP_ZERO |= {"view", "reshape", "flatten", "unflatten", "roll"}
"""Names of operators whose output is zero where the first operand is, whatever the others are."""

REORDER = _REARRANGE | {"contiguous", "clone"}
"""Names of operators that may stand between a view and the parts that are read of it."""

MIX_ACTIVATIONS = frozenset({"scaled_dot_product_attention", "matmul", "bmm", "einsum", "softmax", "_softmax"})
"""Names of operators by which attention begins: products of activations, and the softmax of scores."""

END_ATTENTION = frozenset(
    {"linear", "addmm", "mm", "conv1d", "conv2d", "conv3d", "convolution", "layer_norm", "batch_norm"}
)
"""Names of operators with weights behind which no attention is looked for."""

# Operators that only view memory in another way, or do nothing in evaluation mode.
_VIEWS = "alias as_strided chunk detach expand expand_as flatten getitem movedim narrow permute reshape select slice"
_MORE_VIEWS = "split split_with_sizes squeeze t transpose unbind unflatten unsqueeze view view_as"
_NOTHING = "clone contiguous dropout detach_ feature_dropout lift_fresh_copy to"
FREE = frozenset(f"{_VIEWS} {_MORE_VIEWS} {_NOTHING}".split())
"""Names of operators that take no time worth measuring."""


def kind_of(name: str) -> OperatorKind | None:
    """Kind of the operator of that name; ``None`` for one that is not listed, as most element-wise ones.

    Example:
        >>> kind_of("conv2d"), kind_of("tanh")
        (<OperatorKind.CONVOLUTION: 1>, None)
    """
    return _KINDS.get(name)


def operator_name(target: Any) -> str:
    """Name of an operator without namespace and overload: ``"conv2d"`` for ``aten.conv2d.default``.

    A foreign operator keeps its namespace.

    Example:
        >>> import torch
        >>> operator_name(torch.ops.aten.add.Tensor)
        'add'
    """
    if isinstance(target, OpOverload):
        name = schema_name(target)
        return name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))
