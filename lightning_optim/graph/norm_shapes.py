"""Norms of tensors without content: only shapes are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override


@final
class NormShapes(TorchFunctionMode):
    """Mode in which a norm returns an empty tensor of its input's shape, and refuses what its parameters do not fit.

    On tensors that have no content PyTorch goes through a norm operator by operator, which is most of a trial's time.

    Example:
        >>> norm, batch = torch.nn.BatchNorm1d(4, device="meta"), torch.empty(2, 3, device="meta")
        >>> with NormShapes():
        ...     norm(batch)
        Traceback (most recent call last):
        ValueError: a norm of 4 channels cannot read an input of shape (2, 3)
    """

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _NORMS.get(func, func)(*args, **(kwargs or {}))


def _batch_norm(
    values: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    **_: Any,
) -> Tensor:
    return _like(values, values.shape[1:2], mean, variance, weight, bias)


def _layer_norm(
    values: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, **_: Any
) -> Tensor:
    normalized = torch.Size(shape)
    if values.shape[-len(normalized) :] != normalized:
        raise ValueError(f"a norm over {tuple(normalized)} cannot read an input of shape {tuple(values.shape)}")
    return _like(values, normalized, weight, bias)


def _group_norm(
    values: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, **_: Any
) -> Tensor:
    if values.shape[1] % groups:
        raise ValueError(f"a norm of {groups} groups cannot read an input of shape {tuple(values.shape)}")
    return _like(values, values.shape[1:2], weight, bias)


def _like(values: Tensor, shape: torch.Size, *parameters: Tensor | None) -> Tensor:
    for parameter in parameters:
        if parameter is not None and parameter.shape != shape:
            raise ValueError(
                f"a norm of {parameter.numel()} channels cannot read an input of shape {tuple(values.shape)}"
            )
    return torch.empty_like(values)


_NORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
