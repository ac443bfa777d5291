"""Quantizers of a network's activations, by the key of the activation."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_optim.quantization.layers import AssignedLayers
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.learner import ActivationLearner
from lightning_optim.quantization.simulation.learned_values import LearnedValues


@final
class ActivationQuantizers:
    """Quantizers of a network's activations, and the scales that they have learned.

    Args:
        quantizer: Quantizer of every activation whose layer has none of its own.
        layers: Layers with quantizers of their own; without it, there are none.
        learned: What the quantizers train; without it, nothing is learned.

    Example:
        >>> from lightning_optim.quantization import Affine
        >>> ActivationQuantizers(Affine(bits=4)).quantizer_of("head:linear").scheme.bits
        4
    """

    def __init__(
        self, quantizer: Quantizer, layers: AssignedLayers | None = None, learned: LearnedValues | None = None
    ) -> None:
        self.quantizer = quantizer
        self._layers, self._learned = layers or AssignedLayers(), learned or LearnedValues()

    def quantizer_of(self, key: str) -> Quantizer:
        """Return the quantizer of an activation, by its key."""
        own = self._layers.entry_of(key)
        return self.quantizer if own is None or own.activation_quantizer is None else own.activation_quantizer

    def learned_qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return the scale and the zero point that were learned for an activation, on a device, if any were."""
        quantizer = self.quantizer_of(key)
        if not isinstance(quantizer, ActivationLearner):
            return None
        values = self._learned.values(f"activation/{key}", device)
        return None if values is None else quantizer.learned_qparams(values)
