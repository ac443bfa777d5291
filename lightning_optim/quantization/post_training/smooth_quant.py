"""SmoothQuant: outliers of activations move into weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.post_training.functional import smoothing_factors
from lightning_optim.quantization.post_training.rescale import Rescale
from lightning_optim.quantization.simulation.calibration import run_hooked
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.weighted_layers import find_layers
from lightning_optim.surgery.select import named_modules


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuant(PostTraining):
    """Divide the outputs of each layer norm by factors that the linear layers behind it take over.

    Xiao et al., 2022 (arXiv:2211.10438, eq. 4). A layer norm that something else reads too, such as a sum around a
    block, is left as it is: whether factors pass without a trace is found by trying. The network computes what it did
    before, but for the last digits.

    Args:
        strength: How much of the spread goes to the weights, in ``[0, 1]``; the paper's alpha.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength must be in [0, 1], got {self.strength}")

    @override
    def apply(self, network: nn.Module, simulator: Simulator, batches: Sequence[Any]) -> tuple[str, ...]:
        assert simulator.plan is not None
        linears = {
            layer.name: layer.module
            for layer in find_layers(network, simulator.plan)
            if isinstance(layer.module, nn.Linear)
        }
        changed: list[str] = []
        for norm, largest, readers in _norms_and_readers(network, linears, batches):
            weights = [linears[name].weight for name in readers]
            rescale = _between(norm, weights)
            if weights and rescale.keeps(network, batches[0]):
                read = torch.stack([weight.detach().abs().amax(0) for weight in weights]).amax(0)
                rescale.apply(smoothing_factors(largest, read, self.strength))
                changed += readers
        return tuple(changed)


def _between(norm: nn.LayerNorm, weights: Sequence[Tensor]) -> Rescale:
    @torch.no_grad()
    def make(factors: Tensor) -> None:
        norm.weight.mul_(factors)
        if norm.bias is not None:
            norm.bias.mul_(factors)

    @torch.no_grad()
    def read(factors: Tensor) -> None:
        for weight in weights:
            weight.mul_(factors)

    return Rescale(num_channels=norm.normalized_shape[0], scale_producer=make, scale_consumer=read)


def _norms_and_readers(
    network: nn.Module, linears: dict[str, nn.Linear], batches: Sequence[Any]
) -> list[tuple[nn.LayerNorm, Tensor, list[str]]]:
    """Layer norms over one dimension, the largest magnitude of each channel ``[C]``, and who reads their output."""
    norms = {
        name: module
        for name, module in named_modules(network).items()
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine and len(module.normalized_shape) == 1
    }
    outputs: dict[str, Tensor] = {}
    largest: dict[str, Tensor] = {}
    readers: dict[str, list[str]] = {name: [] for name in norms}

    def make_hook(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            outputs[name] = output
            now = output.detach().abs().flatten(0, -2).amax(0)
            largest[name] = torch.maximum(largest.get(name, now), now)

        return hook

    def read_hook(name: str) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            for source, output in outputs.items():
                if args and args[0] is output and name not in readers[source]:
                    readers[source].append(name)

        return hook

    handles = [module.register_forward_hook(make_hook(name)) for name, module in norms.items()]
    handles += [module.register_forward_pre_hook(read_hook(name)) for name, module in linears.items()]
    run_hooked(network, batches, handles)
    return [(norms[name], largest[name], readers[name]) for name in norms if name in largest]
