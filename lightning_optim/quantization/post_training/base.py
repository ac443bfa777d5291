"""Interface of post-training methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_optim.quantization.simulation.simulator import Simulator


class PostTraining(ABC):
    """Changes the weights of a trained network so that rounding them costs less."""

    __slots__ = ()

    @abstractmethod
    def apply(self, network: nn.Module, simulator: Simulator, batches: Sequence[Any]) -> tuple[str, ...]:
        """Change the network in place; ranges of activations may change with it, so calibrate anew afterwards.

        Args:
            network: The trained network, its parameters on one device.
            simulator: Calibrated on the network as it is.
            batches: Inputs, as ``run_calibration`` takes them.

        Returns:
            Names of the layers that changed.
        """
