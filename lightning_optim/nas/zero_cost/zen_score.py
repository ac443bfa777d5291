"""Zen-score: how much the features of an untrained network change with its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.zero_cost.base import ZeroCostScore, filled, floats_in, fresh_copy
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.torch_private import BatchNorm


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ZenScore(ZeroCostScore):
    """Zen-score (Lin et al., 2021; arXiv:2102.01063, algorithm 1).

    ``log E ||f(x) - f(x + a e)|| + sum_i log sqrt(mean_j var_ij)``: ``f`` are the features before the classifier, ``x``
    and ``e`` standard normal, ``var_ij`` the variance of channel ``j`` before batch norm ``i``, which the second term
    gives back, since batch norms hide the scale. Weights of convolutions and linear layers are standard normal. The
    features are the last maps of a network (more than two dimensions, and more than one position), or its outputs if
    it has none.

    Args:
        step: ``a``, above 0.
        num_samples: Inputs of a draw, at least 2.
        num_draws: Draws of weights and inputs that are averaged, at least 1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> wide, narrow = (nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()) for width in (64, 4))
        >>> inputs = Inputs((torch.ones(1, 3, 8, 8),))
        >>> ZenScore().measure(wide, inputs, seed=0) > ZenScore().measure(narrow, inputs, seed=0)
        True
    """

    step: float = 0.01
    num_samples: int = 16
    num_draws: int = 4

    def __post_init__(self) -> None:
        if not self.step > 0.0:
            raise ValueError(f"step must be above 0, got {self.step}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {self.num_draws}")

    @override
    def measure(self, network: nn.Module, inputs: Inputs, seed: int) -> float:
        copy = fresh_copy(network, seed).train()
        scores = [self._draw(copy, inputs, seed + draw) for draw in range(self.num_draws)]
        return math.fsum(scores) / len(scores)

    def _draw(self, network: nn.Module, inputs: Inputs, seed: int) -> float:
        normal = torch.Generator().manual_seed(seed)
        _draw_weights(network, normal)
        first = filled(inputs, self.num_samples, lambda value: torch.randn(value.shape, generator=normal))
        noise = torch.Generator().manual_seed(seed + 1_000_003)
        second = filled(first, None, lambda value: value + self.step * torch.randn(value.shape, generator=noise))
        watch = _Watch(network)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
            features = [watch.features_of(batch, seed) for batch in (first, second)]
        change = float((features[0] - features[1]).flatten(1).norm(dim=1).mean())
        scales = [0.5 * math.log(variance) for variance in watch.variances if variance > 0.0]
        return math.log(change) + math.fsum(scales) if change > 0.0 else -math.inf


def _draw_weights(network: nn.Module, normal: torch.Generator) -> None:
    for module in network.modules():
        weight = vars(module)["_parameters"].get("weight")
        if isinstance(weight, Tensor) and weight.dim() > 1:
            weight.data.copy_(torch.randn(weight.shape, generator=normal))


@final
class _Watch:
    """What a network computes on its way: its last maps, and the variances that batch norms take away."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._handles = [module.register_forward_hook(self._see) for module in network.modules()]
        self._maps: Tensor | None = None
        self.variances: list[float] = []
        self._is_first = True

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def features_of(self, batch: Inputs, seed: int) -> Tensor:
        torch.manual_seed(seed)  # of dropout: both inputs are treated alike
        self._maps = None
        output = batch.call(self._network)
        self._is_first = False
        if self._maps is not None:
            return self._maps.double()
        return torch.cat([leaf.flatten(1) for leaf in floats_in(output)], dim=1).double()

    def _see(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._is_first and isinstance(module, BatchNorm) and isinstance(args[0], Tensor):
            value = args[0].detach().double().transpose(0, 1).flatten(1)
            self.variances.append(float(value.var(dim=1, unbiased=False).mean()))
        if isinstance(output, Tensor) and output.dim() > 2 and math.prod(output.shape[2:]) > 1:
            self._maps = output.detach()
