"""Unquantized activations (weight-only quantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.base import ActivationQuantizer
from lightning_optim.quantization.scheme import Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Unquantized(ActivationQuantizer):
    """Activations that stay in floating point beside quantized weights, as in GPTQ (Frantar et al., arXiv:2210.17323).

    A linear layer of large weights and small batches waits for memory, not for arithmetic: fewer bytes make it faster.
    ONNX Runtime reads such weights packed, with a scale per group of inputs if wanted; operators without weights
    compute in floating point.

    Example:
        >>> Unquantized().integers(torch.tensor([0.3, -7.0]), torch.tensor(1.0), torch.tensor(0.0))
        tensor([ 0.3000, -7.0000])
    """

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=32, signed="float", symmetric=True, granularity="tensor")

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(low), torch.zeros_like(low)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return x.float()

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return x
