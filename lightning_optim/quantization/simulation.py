"""A backend that computes in floating point what the integers would."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_optim.quantization.backend import Backend
from lightning_optim.quantization.fold import fold_batch_norm, uses_running_statistics
from lightning_optim.quantization.functional import (
    bias_floor,
    fake_quantize,
    per_channel,
    round_bias,
)
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.ranges import Ranges
from lightning_optim.quantization.scheme import Scheme


def weight_scale(weight: Tensor, quantizer: Quantizer, floor: Tensor | None) -> Tensor:
    """Return the scale of a weight, ``[O]`` or a scalar; no smaller than ``floor``."""
    scale = quantizer.weight_scale(weight)
    if floor is None:
        return scale
    return torch.maximum(scale, (floor if scale.dim() else floor.max()).to(scale.dtype))


def _covers(qparams: tuple[Tensor, Tensor], scheme: Scheme, ends: tuple[Tensor, Tensor]) -> bool:
    """Whether values between two ends are all rounded to integers of the scheme, one step from its ends or less."""
    scale, zero_point = map(float, qparams)
    low, high = map(float, ends)
    return (scheme.qmin - zero_point) * scale <= low and high <= (scheme.qmax - zero_point) * scale


@final
class SimulationBackend(Backend):
    """Rounds weights and activations to the values of their integers.

    While a batch norm runs on the statistics of its batch, it can't be folded. A scale of its own for every channel
    makes up for that: rounding ``weight`` or ``weight * gamma / sigma`` is then the same but for the factor. With one
    scale for the whole tensor, the factor is applied before and taken back after rounding.

    Args:
        ranges: Ranges of the activations.
        weight_quantizer: Quantizer of every weight.
        activation_quantizer: Quantizer of every activation.
        observes: Whether activations widen the batch's ranges.
        folds_all: Whether every batch norm is folded, even one that would use its batch's statistics.
    """

    def __init__(
        self,
        ranges: Ranges,
        weight_quantizer: Quantizer,
        activation_quantizer: Quantizer,
        *,
        observes: bool,
        folds_all: bool,
    ) -> None:
        self._ranges, self._weights, self._activations = ranges, weight_quantizer, activation_quantizer
        self._observes, self._folds_all = observes, folds_all

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        ends = self._ranges.observe(key, tensor) if self._observes else None
        qparams = self._ranges.qparams(key, tensor.device)
        if qparams is None:
            return tensor
        scheme = self._activations.scheme
        # A processor knows at once that nothing is clipped; an accelerator would have to be waited for.
        is_known = tensor.device.type == "cpu" and not torch.compiler.is_compiling()
        is_within = is_known and ends is not None and _covers(qparams, scheme, ends)
        return fake_quantize(tensor, *qparams, scheme.qmin, scheme.qmax, is_within=is_within)

    @override
    def folds(self, norm: _BatchNorm) -> bool:
        return self._folds_all or uses_running_statistics(norm)

    @override
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: _BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        qparams = self._ranges.qparams(input_key, weight.device)
        if norm is not None and not self.folds(norm):
            return self._unfolded(weight, norm), bias
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        input_scale = None if qparams is None else qparams[0]
        floor = None if bias is None or input_scale is None else bias_floor(bias, input_scale)
        scale = weight_scale(weight, self._weights, floor)
        if bias is not None and input_scale is not None:
            bias = round_bias(bias, input_scale * scale)
        return self._round(weight, scale), bias

    def _unfolded(self, weight: Tensor, norm: _BatchNorm) -> Tensor:
        if self._weights.scheme.granularity == "channel":
            return self._round(weight, weight_scale(weight, self._weights, None))
        ones = weight.new_ones(weight.shape[0], 1)
        factor, _ = fold_batch_norm(ones, None, norm)
        factor = factor.detach()
        factor = per_channel(torch.where(factor == 0, torch.ones_like(factor), factor).flatten(), weight)
        scaled = weight * factor
        return self._round(scaled, weight_scale(scaled, self._weights, None)) / factor

    def _round(self, weight: Tensor, scale: Tensor) -> Tensor:
        scheme = self._weights.scheme
        return fake_quantize(weight, per_channel(scale, weight), None, scheme.qmin, scheme.qmax, is_within=True)
