"""Attributes in which a layer records its shape, kept true after a cut."""

from __future__ import annotations

from torch import nn

from lightning_optim.surgery.kernel import crop_kernel
from lightning_optim.surgery.layer_kinds import Conv1D
from lightning_optim.surgery.parametrized import weight_shape
from lightning_optim.surgery.torch_private import Convolution, NormBase, TransposedConvolution, refresh_flat_weights


def refresh_attributes(module: nn.Module, old_shape: tuple[int, ...]) -> None:
    """Set ``out_channels``, ``num_features`` and their like to what the parameters say.

    Args:
        module: A module whose tensors were cut; of a type that keeps no such record, it is left as it is,
            but for a ``normalized_shape`` that equals the old shape of its weight.
        old_shape: Shape of its weight before the cut.
    """
    shape = weight_shape(module)
    if isinstance(module, Convolution):
        _refresh_convolution(module, shape)
        if shape[2:] != old_shape[2:]:
            crop_kernel(module, shape[2:])
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, Conv1D):
        _refresh_conv1d(module, shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, NormBase):
        known = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(known) if known is not None else module.num_features
    elif isinstance(module, nn.GroupNorm):
        _refresh_group_norm(module)
    elif isinstance(module, nn.RNNBase):
        _refresh_recurrent(module)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    if shape and getattr(module, "normalized_shape", None) == old_shape:
        vars(module)["normalized_shape"] = shape


def _refresh_convolution(module: Convolution, shape: tuple[int, ...]) -> None:
    outward, inward = (1, 0) if isinstance(module, TransposedConvolution) else (0, 1)
    if 1 < module.groups == module.in_channels and shape[1] == 1:
        multiplier = module.out_channels // module.groups
        module.groups = shape[0] if outward == 1 else shape[0] // multiplier
    module.out_channels, module.in_channels = shape[outward], shape[inward]
    if outward == 1:
        module.out_channels *= module.groups
    else:
        module.in_channels *= module.groups


def _refresh_conv1d(module: Conv1D, shape: tuple[int, ...]) -> None:
    own = vars(module)
    own.update({key: size for key, size in zip(("nx", "nf"), shape, strict=True) if key in own})


def _refresh_group_norm(module: nn.GroupNorm) -> None:
    if module.num_groups == module.num_channels:
        module.num_groups = len(module.weight)
    module.num_channels = len(module.weight)


def _refresh_recurrent(module: nn.RNNBase) -> None:
    """Set units and inputs as the first layer's weights say; the layer holds its weights in a list, too."""
    inputs, states = module.all_weights[0][:2]
    module.input_size = inputs.shape[1]
    if not module.proj_size:
        module.hidden_size = states.shape[1]
    refresh_flat_weights(module)
