"""Cross-layer equalization: even ranges of channels between consecutive layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.post_training.functional import equalizing_factors
from lightning_optim.quantization.post_training.rescale import Rescale
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.weighted_layers import WeightedLayer, find_layers


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class CrossLayerEqualization(PostTraining):
    """Scale channels so that the weights that make one and those that read it have the same range.

    Nagel et al., 2019 (arXiv:1906.04721, section 4.1). Of layers that follow one another, those are taken between which
    factors are seen to pass without a trace: with ReLU, pooling or nothing between them, and no third reader. The
    network computes what it did before, but for the last digits.

    Args:
        num_rounds: How often to go through the network, at least 1; each layer stands in two pairs.
    """

    num_rounds: int = 10

    def __post_init__(self) -> None:
        if self.num_rounds < 1:
            raise ValueError(f"num_rounds must be at least 1, got {self.num_rounds}")

    @override
    def apply(self, network: nn.Module, simulator: Simulator, batches: Sequence[Any]) -> tuple[str, ...]:
        assert simulator.plan is not None
        pairs = []
        for maker, reader in pairwise(find_layers(network, simulator.plan)):
            rescale = _between(maker, reader)
            if rescale is not None and rescale.keeps(network, batches[0]):
                pairs.append((maker, reader, rescale))
        for _ in range(self.num_rounds):
            for maker, reader, rescale in pairs:
                rescale.apply(equalizing_factors(*_ranges(maker, reader)))
        return tuple(dict.fromkeys(layer.name for pair in pairs for layer in pair[:2]))


def _between(maker: WeightedLayer, reader: WeightedLayer) -> Rescale | None:
    channels = len(maker.module.weight)
    if not maker.can_scale_outputs or reader.input_view(reader.module.weight, channels) is None:
        return None

    @torch.no_grad()
    def read(factors: Tensor) -> None:
        view = reader.input_view(reader.module.weight, channels)
        assert view is not None
        view.mul_(factors.view(-1, *[1] * (view.dim() - 1)))

    return Rescale(num_channels=channels, scale_producer=maker.scale_outputs, scale_consumer=read)


def _ranges(maker: WeightedLayer, reader: WeightedLayer) -> tuple[Tensor, Tensor]:
    made = maker.folded()
    read = reader.input_view(reader.folded(), len(made))
    assert read is not None
    return made.abs().flatten(1).amax(1), read.abs().flatten(1).amax(1)
