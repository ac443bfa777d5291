"""Bias correction: the mean error of rounding is taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.simulation.calibration import run_hooked
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.weighted_layers import WeightedLayer, find_layers
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import without_torch_functions


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCorrection(PostTraining):
    """Subtract from each bias the mean by which rounding moves its output channel.

    ``b -= E[W' x'] - E[W x]``, with ``W'`` and ``x'`` rounded: Nagel et al., 2019 (arXiv:1906.04721, section 4.2,
    eq. 15-16, with the means taken from data as in appendix D), layer after layer, so that each sees the ones before it
    corrected. A layer without a bias, of its own or of its batch norm, is left as it is.
    """

    @override
    def apply(self, network: nn.Module, simulator: Simulator, batches: Sequence[Any]) -> tuple[str, ...]:
        assert simulator.plan is not None
        layers = [layer for layer in find_layers(network, simulator.plan) if layer.bias is not None]
        wanted = _means(network, layers, batches)
        patches = Patches()
        patches.wrap(network, "forward", lambda plain, *args, **kwargs: simulator.run(network, plain, args, kwargs))
        try:
            for layer in layers:
                found = _means(network, [layer], batches)[layer.name]
                assert layer.bias is not None
                with torch.no_grad():
                    layer.bias.sub_((found - wanted[layer.name]).to(layer.bias.dtype))
        finally:
            patches.undo()
        return tuple(layer.name for layer in layers)


def _means(network: nn.Module, layers: Sequence[WeightedLayer], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Mean of every output channel over all batches, ``[O]`` for each layer."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(layer: WeightedLayer) -> Callable[..., None]:
        axis = -1 if isinstance(layer.module, nn.Linear) and layer.norm is None else 1

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            with without_torch_functions():  # the placement is not to see this
                flat = output.detach().double().movedim(axis, -1).flatten(0, -2)
                sums[layer.name] = sums.get(layer.name, 0.0) + flat.sum(0)
                counts[layer.name] = counts.get(layer.name, 0) + len(flat)

        return hook

    run_hooked(network, batches, [layer.last.register_forward_hook(watch(layer)) for layer in layers])
    return {name: total / counts[name] for name, total in sums.items()}
