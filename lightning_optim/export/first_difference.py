"""First difference: the operator from which on a file computes something else than what was simulated."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.export.lowering.deployed import DeployedNetwork
from lightning_optim.export.lowering.dialect import AffineDialect
from lightning_optim.export.lowering.operators import translations
from lightning_optim.export.onnx_file.open_shapes import Example
from lightning_optim.export.onnx_file.session import load_session
from lightning_optim.export.onnx_file.write import write_onnx
from lightning_optim.export.output_comparison import OutputComparison
from lightning_optim.quantization.simulation.backend import Backend, WrappedBackend
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.copies import eval_copy


@torch.no_grad()
def first_difference(
    simulator: Simulator, network: nn.Module, example: Example, max_error: float
) -> tuple[str, float] | None:
    """Find where ONNX Runtime first computes something else than what was simulated.

    The network is written once more, with every rounded activation as an output of its own.

    Args:
        simulator: Ranges and quantizers of the network.
        network: The trained network; it stays as it is.
        example: Positional and keyword inputs, on the CPU.
        max_error: Relative error of an activation from which on it counts as different.

    Returns:
        Key of the operator and the relative error, or ``None`` if no activation differs so much.
    """
    expected, found = _simulated(simulator, network, example), _deployed(simulator, network, example)
    for key, tensor in expected.items():
        if key in found and found[key].numel() == tensor.numel():
            comparison = OutputComparison(key)
            comparison.add(tensor.flatten(), found[key].flatten())
            error = comparison.result().relative_error
            if not error <= max_error:
                return key, error
    return None


@final
class _TappedBackend(WrappedBackend):
    """Backend that simulates, and keeps what it rounds."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.tapped: dict[str, Tensor] = {}

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        rounded = super().activation(tensor, key)
        self.tapped.setdefault(key, rounded.clone())
        return rounded


@final
class _TappedNetwork(nn.Module):
    """Network with integer constants that returns what it rounds."""

    def __init__(self, deployed: DeployedNetwork) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Run the network."""
        backend = self.deployed.backend
        backend.tapped = {}
        self.deployed(*args, **kwargs)
        tapped, backend.tapped = backend.tapped, None
        return [*tapped.values()]


def _simulated(simulator: Simulator, network: nn.Module, example: Example) -> dict[str, Tensor]:
    twin, backend = eval_copy(network).cpu().float(), _TappedBackend(simulator.backend(simulator.ranges))
    with simulator.placed(twin, backend) as placement:
        output = type(twin).forward(twin, *example[0], **example[1])
    placement.finish(output)
    return backend.tapped


def _deployed(simulator: Simulator, network: nn.Module, example: Example) -> dict[str, Tensor]:
    deployed = DeployedNetwork(network, simulator, AffineDialect())
    deployed(*example[0], **example[1])
    deployed.backend.tapped = {}
    deployed(*example[0], **example[1])
    keys, deployed.backend.tapped = [*deployed.backend.tapped], None
    with tempfile.TemporaryDirectory() as folder:
        path, inputs = Path(folder, "tapped.onnx"), tensors_of(example)
        write_onnx(_TappedNetwork(deployed), example, path, [{} for _ in inputs], translations=translations())
        arrays = load_session(path).run(*inputs)
    return {key: torch.from_numpy(array) for key, array in zip(keys, arrays, strict=True)}
