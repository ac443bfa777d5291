"""SynFlow: how much flows through the absolute weights of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.zero_cost.base import ZeroCostScore, filled, floats_in, fresh_copy
from lightning_optim.surgery.inputs import Inputs


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SynFlow(ZeroCostScore):
    """SynFlow score (Tanaka et al., 2020; arXiv:2006.05467, equation 1; as a proxy: Abdelfattah et al., 2021,
    arXiv:2101.08134, section 3).

    ``log sum_w |w * dR/dw|`` with ``R`` the sum of the outputs for an input of ones, every weight replaced by its
    absolute value. Batch norms pass their input on. No data is read. It grows with depth and width, so that beside
    a bound on the cost it tells more than without one.

    Example:
        >>> SynFlow().measure(nn.Linear(4, 2), Inputs((torch.ones(1, 4),)), seed=0) > 0
        True
    """  # noqa: D205  # the two papers belong together

    @override
    def measure(self, network: nn.Module, inputs: Inputs, seed: int) -> float:
        copy = fresh_copy(network, seed).double().eval()  # of many layers, products overflow single precision
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.abs_()
        ones = filled(inputs, 1, lambda value: torch.ones_like(value, dtype=torch.float64))
        with torch.enable_grad():
            flow = torch.stack([output.sum() for output in floats_in(ones.call(copy))]).sum()
            weights = [parameter for parameter in copy.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(flow, weights, allow_unused=True)
        pairs = zip(weights, gradients, strict=True)
        total = math.fsum(float((weight * gradient).abs().sum()) for weight, gradient in pairs if gradient is not None)
        return math.log(total) if total > 0.0 else -math.inf
