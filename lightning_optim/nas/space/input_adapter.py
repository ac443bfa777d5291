"""Adapter of an input: brings what one module has put out to the shape that another one takes."""

# B batch, C channels, H height, W width, D dimensions of a token

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from torch import Tensor, nn

from lightning_optim.surgery.layer_kinds import Conv1D
from lightning_optim.surgery.torch_private import Convolution, NormBase

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_ADAPTIVE_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_FEATURES_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.RNNBase, Conv1D)
_FEATURES_SECOND = (Convolution, NormBase, nn.GroupNorm)


def has_features_last(module: nn.Module, num_dims: int) -> bool:
    """Whether a module takes sequences ``[B, ..., D]`` rather than maps ``[B, C, ...]``.

    Its first layer that tells decides; without one, four dimensions and more are taken for maps.

    Example:
        >>> has_features_last(nn.Sequential(nn.ReLU(), nn.Conv1d(4, 4, 3)), 3), has_features_last(nn.ReLU(), 3)
        (False, True)
    """
    for layer in module.modules():
        if isinstance(layer, _FEATURES_LAST):
            return True
        if isinstance(layer, _FEATURES_SECOND):
            return False
    return num_dims < 4


def input_adapter(given: Tensor, needed: Tensor, *, features_last: bool) -> tuple[nn.Module, str]:
    """Build what brings one tensor to the shape of another.

    Args:
        given: What the source puts out.
        needed: The own input of the target.
        features_last: Whether they are sequences, whose last dimension a linear layer maps. The channels of maps are
            mapped by a 1 x 1 convolution, their sizes by pooling or repetition.

    Returns:
        The adapter, an ``nn.Identity`` where the shapes agree, and what it is, in words.

    Raises:
        ValueError: Where no adapter can do it.

    Example:
        >>> import torch
        >>> adapter, text = input_adapter(torch.ones(1, 4, 8, 8), torch.ones(1, 6, 4, 4), features_last=False)
        >>> adapter(torch.ones(1, 4, 8, 8)).shape, text
        (torch.Size([1, 6, 4, 4]), 'AvgPool2d 8x8 to 4x4, Conv2d 4 to 6')
    """
    if given.dtype != needed.dtype:
        raise ValueError(f"it puts out {given.dtype}, and {needed.dtype} is needed")
    if given.shape == needed.shape:
        return nn.Identity(), ""
    features_last = features_last or given.dim() == 2
    kept = slice(-1) if features_last else slice(1)
    if given.dim() != needed.dim() or given.shape[kept] != needed.shape[kept] or not given.is_floating_point():
        raise ValueError(f"it puts out {list(given.shape)}, and no adapter makes {list(needed.shape)} of it")
    found = _of_sequences(given, needed) if features_last else _of_maps(given, needed)
    layers = [layer for layer, _ in found]
    adapter = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    return adapter.to(needed.device, needed.dtype), ", ".join(text for _, text in found)


def _of_sequences(given: Tensor, needed: Tensor) -> list[tuple[nn.Module, str]]:
    before, after = given.shape[-1], needed.shape[-1]
    return [(nn.Linear(before, after, bias=False), f"Linear {before} to {after}")]


def _of_maps(given: Tensor, needed: Tensor) -> list[tuple[nn.Module, str]]:
    before, after, sizes, wanted = given.shape[1], needed.shape[1], given.shape[2:], needed.shape[2:]
    if len(sizes) > len(_CONVOLUTIONS):
        raise ValueError(f"it puts out {list(given.shape)}, of more dimensions than a convolution has")
    # The convolution runs where the map is small.
    found = [_pool(sizes, wanted)] if sum(sizes) > sum(wanted) else []
    if before != after:
        layer = _CONVOLUTIONS[len(sizes)](before, after, 1, bias=False)
        found.append((layer, f"{type(layer).__name__} {before} to {after}"))
    if sum(sizes) <= sum(wanted) and sizes != wanted:
        found.append(_enlarge(sizes, wanted))
    return found


def _pool(sizes: Sequence[int], wanted: Sequence[int]) -> tuple[nn.Module, str]:
    steps = tuple(max(1, ceil(size / each)) for size, each in zip(sizes, wanted, strict=True))
    is_whole = all(size == step * each for size, step, each in zip(sizes, steps, wanted, strict=True))
    if all(ceil(size / step) == each for size, step, each in zip(sizes, steps, wanted, strict=True)):
        # It follows a network to other sizes, which a pool to fixed ones does not.
        pool = _POOLS[len(sizes)](steps, steps, ceil_mode=not is_whole, count_include_pad=False)
    else:
        pool = _ADAPTIVE_POOLS[len(sizes)](tuple(wanted))
    return pool, f"{type(pool).__name__} {_text(sizes)} to {_text(wanted)}"


def _enlarge(sizes: Sequence[int], wanted: Sequence[int]) -> tuple[nn.Module, str]:
    factors = tuple(each // size for size, each in zip(sizes, wanted, strict=True))
    is_whole = all(size * factor == each for size, factor, each in zip(sizes, factors, wanted, strict=True))
    layer = nn.Upsample(scale_factor=tuple(map(float, factors))) if is_whole else nn.Upsample(size=tuple(wanted))
    return layer, f"Upsample {_text(sizes)} to {_text(wanted)}"


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
