"""Factors that two parts of a network pass on to each other, so that the whole computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.inputs import call_network
from lightning_optim.surgery.modes import evaluating

_TOLERANCE = 1e-4  # powers of two change no digit; kernels may still add up in another order
_LARGEST_POWER = 4

Scaling = Callable[[Tensor], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """Channels whose values one part of a network makes and another reads.

    Args:
        num_channels: How many, C.
        scale_producer: Multiplies what makes each channel, by ``[C]`` factors.
        scale_consumer: Multiplies what reads each channel.
    """

    num_channels: int
    scale_producer: Scaling
    scale_consumer: Scaling

    def apply(self, divisor: Tensor) -> None:
        """Divide the channels by ``[C]`` and let their readers make up for it."""
        self.scale_producer(1.0 / divisor)
        self.scale_consumer(divisor)

    def keeps(self, network: nn.Module, batch: Any) -> bool:
        """Whether a network's output stays the same whatever the factors: found by trying, with random powers of two.

        A power of two is exact in floating point, so that all is as before afterwards. What lies between the parts is
        thereby known to pass factors on, as ReLU, max-pooling or flattening do, and to have no other reader.
        """
        generator = torch.Generator().manual_seed(0)
        powers = torch.randint(-_LARGEST_POWER, _LARGEST_POWER + 1, (self.num_channels,), generator=generator)
        device = next(network.parameters()).device
        factors = torch.ldexp(torch.ones(self.num_channels), powers).to(device)
        with evaluating(network):
            before = tensors_of(call_network(network, batch))
            self.apply(factors)
            try:
                after = tensors_of(call_network(network, batch))
            finally:
                self.apply(1.0 / factors)
        return all(map(_is_same, before, after))


def _is_same(before: Tensor, after: Tensor) -> bool:
    if not before.is_floating_point():
        return torch.equal(before, after)
    return bool((before - after).abs().max() <= _TOLERANCE * before.abs().max())
