"""GPTQ: weights of a linear layer compensate for each other's rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import per_channel
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.post_training.functional import compensated_rounding
from lightning_optim.quantization.post_training.grid import is_found_again, largest_of_each_scale, replace_weight
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.simulation.calibration import run_hooked
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.weighted_layers import find_layers


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class GPTQ(PostTraining):
    """Round linear layers, one input after another, so that their outputs on the data change least.

    Frantar et al., 2022 (arXiv:2210.17323, algorithm 1), layer after layer, so that each sees the ones before it
    rounded. The largest weight of each scale stays, which keeps the scale: the weights are left on the grid that their
    quantizer finds again. A layer whose quantizer does not (8-bit ``Symmetric`` with ``portable``, which counts pairs
    of weights) is left as it is, as are convolutions and layers with a batch norm.

    Args:
        damping: Added to the diagonal of the Hessian, as a fraction of its mean, > 0.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not self.damping > 0.0:
            raise ValueError(f"damping must be > 0, got {self.damping}")

    @override
    def apply(self, network: nn.Module, simulator: Simulator, batches: Sequence[Any]) -> tuple[str, ...]:
        assert simulator.plan is not None
        changed = []
        for layer in find_layers(network, simulator.plan):
            if not isinstance(layer.module, nn.Linear) or layer.norm is not None:
                continue
            quantizer, weight = simulator.weight_quantizer_of(layer.key), layer.module.weight
            rounded = self._round(weight.detach(), _gram(network, layer.module, batches), quantizer)
            if replace_weight(layer.module, rounded):
                changed.append(layer.name)
        return tuple(changed)

    def _round(self, weight: Tensor, gram: Tensor, quantizer: Quantizer) -> Tensor | None:
        scale = quantizer.weight_scale(weight)
        steps = per_channel(scale, weight).expand_as(weight)

        def rounding(column: Tensor, place: int) -> Tensor:
            return quantizer.fake(column, steps[:, place : place + 1], None)

        rounded = compensated_rounding(weight, gram, rounding, largest_of_each_scale(weight, scale), self.damping)
        return rounded if is_found_again(rounded, quantizer, scale) else None


def _gram(network: nn.Module, layer: nn.Linear, batches: Sequence[Any]) -> Tensor:
    """``X^T X`` over all inputs of a layer, ``[I, I]``."""
    size = layer.in_features
    gram = torch.zeros(size, size, dtype=torch.float64, device=layer.weight.device)

    def hook(_module: nn.Module, args: Any, _output: Any) -> None:
        rows = args[0].detach().double().reshape(-1, size)
        gram.addmm_(rows.t(), rows)

    run_hooked(network, batches, [layer.register_forward_hook(hook)])
    return gram
