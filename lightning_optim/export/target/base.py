"""What every target offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export.kernels import Kernels
from lightning_optim.quantization.operators import Role
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulator import Simulator

Runner = Callable[..., Any]
"""Takes one array or CPU tensor for each input in the file's order, and returns one array for each output."""


class Target(ABC):
    """A runtime that an exported network is for: what it can hold, how it is written, and what it really runs."""

    __slots__ = ()

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]]
    """Roles that run in integers -> what their kernels are called if they do not."""

    @abstractmethod
    def check(self, simulator: Simulator) -> None:
        """Refuse integers that the runtime has no kernels for.

        Raises:
            ExportError: If there are some; the message names them.
        """

    @abstractmethod
    def write(
        self, simulator: Simulator, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path
    ) -> None:
        """Write the network to ``path``.

        Args:
            simulator: What training learned.
            network: The trained network; it stays as it is.
            args: Example positional inputs, on the CPU.
            kwargs: Example keyword inputs.
            path: The file.

        Raises:
            ExportError: If the network can't be exported; the message names its class.
        """

    @abstractmethod
    def inspect(self, path: Path) -> Kernels:
        """Return what the runtime makes of the file."""

    @abstractmethod
    def load(self, path: Path) -> Runner:
        """Load the file into the runtime, on one thread of the CPU."""


def check_weights(simulator: Simulator, runtime: str) -> None:
    """Refuse weights that are no small integers around 0.

    Raises:
        ExportError: If there are some.
    """
    scheme = simulator.weight_quantizer.scheme
    if scheme.signed != "int" or not scheme.symmetric:
        raise ExportError(f"{runtime}'s integer kernels need signed symmetric weights, got {scheme}")


def check_activations(simulator: Simulator, runtime: str, needed: str, accepts: Callable[[Scheme], bool]) -> None:
    """Refuse activations of other integers than needed.

    Raises:
        ExportError: If there are some.
    """
    scheme = simulator.activation_quantizer.scheme
    if not accepts(scheme):
        raise ExportError(f"{runtime}'s integer kernels need {needed}, got {scheme}")
