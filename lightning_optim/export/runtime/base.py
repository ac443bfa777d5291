"""Runtime: the interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export.onnx_file.kernels import Kernels
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulation.operators import WEIGHTED_ROLES, Role
from lightning_optim.quantization.simulation.simulator import Simulator

Runner = Callable[..., Any]
"""Function that runs a loaded file: takes one array or CPU tensor per input, and returns one array per output."""


class Runtime(ABC):
    """Runtime of an exported network: the schemes that it accepts, how a file is written, and which kernels it runs."""

    __slots__ = ()

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]]
    """Roles whose operators must run in integers -> names of the kernels that would compute them in floating point."""

    lacks: ClassVar[Mapping[Role, str]] = {}
    """Roles that this runtime never runs in integers, though other runtimes do -> why."""

    @abstractmethod
    def check(self, simulator: Simulator) -> None:
        """Refuse quantization schemes that the runtime has no integer kernels for.

        Raises:
            ExportError: If an operator has such a scheme; the message names it.
        """

    @abstractmethod
    def write(
        self, simulator: Simulator, network: nn.Module, example: Example, path: Path, shapes: OpenShapes
    ) -> Kernels:
        """Write the network to ``path``, and return the kernels that the runtime runs for it.

        Args:
            simulator: Ranges and quantizers of the network.
            network: The trained network; it stays as it is.
            example: Positional and keyword inputs, on the CPU.
            path: The file.
            shapes: Which of their dimensions are open.

        Raises:
            ExportError: If the network can't be exported; the message names its class.
        """

    @abstractmethod
    def load(self, path: Path) -> Runner:
        """Load the file into the runtime, which runs it on one thread of the CPU."""

    def integer_share(self, path: Path, inputs: Sequence[Any]) -> float | None:
        """Measure the share of the file's multiply-accumulates that runs in integers, in ``[0, 1]``.

        Args:
            path: The file.
            inputs: One array or CPU tensor per input.

        Returns:
            The share, or ``None`` if the runtime tells nothing of it.
        """
        return None


def check_weights(simulator: Simulator, name: str, *, takes_groups: bool = False) -> None:
    """Refuse weights that are not symmetric int8 with a scale per tensor or per output channel.

    Args:
        simulator: Ranges and quantizers of the network.
        name: Name of the runtime, for the message.
        takes_groups: Whether linear layers whose output stays unquantized may have a scale per group of inputs.

    Raises:
        ExportError: If a layer has such weights; the message names it.
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
    """Refuse activations whose scheme the runtime has no integer kernels for.

    Args:
        simulator: Ranges and quantizers of the network.
        name: Name of the runtime, for the message.
        needed: The activations that it takes, for the message.
        accepts: Whether it takes a scheme.

    Raises:
        ExportError: If the output of an operator has another scheme; the message names the operator.
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
