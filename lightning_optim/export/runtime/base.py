"""Runtime: the interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export.onnx_file.kernels import Kernels
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulation.operators import WEIGHTED_ROLES, Role
from lightning_optim.quantization.simulation.simulator import Simulator

Runner = Callable[..., Any]
"""Takes one array or CPU tensor for each input in the file's order, and returns one array for each output."""


class Runtime(ABC):
    """Runtime of an exported network: what it can hold, how it is written, and what it really runs."""

    __slots__ = ()

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]]
    """Roles that run in integers -> what their kernels are called if they do not."""

    lacks: ClassVar[Mapping[Role, str]] = {}
    """Roles that never run in integers here, though they do elsewhere -> why."""

    @abstractmethod
    def check(self, simulator: Simulator) -> None:
        """Refuse integers that the runtime has no kernels for.

        Raises:
            ExportError: If there are some; the message names them.
        """

    @abstractmethod
    def write(
        self, simulator: Simulator, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path
    ) -> Kernels:
        """Write the network to ``path``, and return what the runtime makes of it.

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
    def load(self, path: Path) -> Runner:
        """Load the file into the runtime, on one thread of the CPU."""


def check_weights(simulator: Simulator, name: str, *, takes_groups: bool = False) -> None:
    """Refuse weights that are no int8 around 0, of a scale per tensor or output channel.

    Args:
        simulator: What training learned.
        name: The runtime's.
        takes_groups: Whether linear layers whose output stays unquantized may have a scale per group of inputs.

    Raises:
        ExportError: If a layer has others; the message names it.
    """
    for key in _integer_keys(simulator, WEIGHTED_ROLES):
        scheme = simulator.weight_quantizer_of(key).scheme
        if scheme.signed != "int" or not scheme.symmetric or not -128 <= scheme.qmin <= scheme.qmax <= 127:
            raise ExportError(f"{name}'s integer kernels need signed symmetric weights in int8, {key} has {scheme}")
        is_packed = takes_groups and _is_unrounded_linear(simulator, key)
        if scheme.granularity not in ("tensor", "channel") and not is_packed:
            unless = ", or leave its activations Unquantized if it is linear" if takes_groups else ""
            raise ExportError(
                f"{name}'s integer kernels need a scale per tensor or per channel, {key} has {scheme}; "
                f"leave the layer out with targets.exclude{unless}"
            )


def check_activations(simulator: Simulator, name: str, needed: str, accepts: Callable[[Scheme], bool]) -> None:
    """Refuse activations of other integers than needed.

    Raises:
        ExportError: If an operator puts out others; the message names it.
    """
    for key in simulator.ranges.keys:
        scheme = simulator.activations.quantizer_of(key).scheme
        if not accepts(scheme):
            raise ExportError(f"{name}'s integer kernels need {needed}, {key} has {scheme}")


def has_unrounded_linear(simulator: Simulator) -> bool:
    """Whether a linear layer has a quantized weight beside unquantized activations."""
    return any(_is_unrounded_linear(simulator, key) for key in _integer_keys(simulator, WEIGHTED_ROLES))


def _is_unrounded_linear(simulator: Simulator, key: str) -> bool:
    is_linear = simulator.plan is not None and simulator.plan.operators[key].role is Role.LINEAR
    return is_linear and simulator.activations.quantizer_of(key).scheme.is_exact


def _integer_keys(simulator: Simulator, roles: Set[Role]) -> list[str]:
    operators = simulator.plan.operators if simulator.plan is not None else {}
    return [key for key, operator in operators.items() if operator.role in roles and operator.is_integer]
