"""Binary activations (XNOR-Net)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import SMALLEST_SCALE, symmetric_scale
from lightning_optim.quantization.quantizer.base import DynamicQuantizer
from lightning_optim.quantization.rounding.levels import binarize
from lightning_optim.quantization.scheme import Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryActivation(DynamicQuantizer):
    """Activations -1 and 1 times their mean magnitude (XNOR-Net; Rastegari et al., 2016; arXiv:1603.05279, 3.2).

    The scale is found anew at every pass, one for each sample: of a linear layer's input it is the paper's, of a
    convolution's it is the mean of the paper's K, which has one for every window of the kernel. The gradient passes
    where ``|x| <= 1``, times the scale. Take ``Binary`` for the weights.

    After a ReLU no sign is left: such activations are refused as soon as their range is known. Let the ReLU go, or give
    these layers, and those that answer, another quantizer by ``layers``. No integer kernel of the targets knows signs,
    so an export is refused.

    Example:
        >>> quantizer, x = BinaryActivation(), torch.tensor([[0.5, -1.5], [3.0, 1.0]])
        >>> quantizer.fake(x, *quantizer.own_qparams(x))
        tensor([[ 1., -1.],
                [ 2.,  2.]])
    """

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=1, signed="int", symmetric=True, granularity="token")

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = symmetric_scale(torch.maximum(-low, high).clamp(min=0.0), 2)
        return scale, torch.zeros_like(scale)

    @override
    def own_qparams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        magnitudes = x.detach().abs().float()
        over = tuple(range(1, x.dim())) or (0,)
        scale = magnitudes.mean(over, keepdim=True).clamp(min=SMALLEST_SCALE)
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return binarize(x.float())

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        out: Tensor = _Binarize.apply(x, scale)  # type: ignore[no-untyped-call]  # torch's own
        return out


class _Binarize(torch.autograd.Function):
    """Gives the sign times the scale; the gradient is that of ``scale * clip(x, -1, 1)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= 1.0, scale)
        return (binarize(x.float()) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (is_inside, scale) = gradients, ctx.saved_tensors
        return (gradient * scale * is_inside).to(gradient.dtype), None
