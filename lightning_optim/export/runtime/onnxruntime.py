"""ONNX Runtime: integer kernels on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import ExportError
from lightning_optim.export.lowering.dialect import AffineDialect
from lightning_optim.export.lowering.qdq import write_qdq
from lightning_optim.export.onnx_file.integer_widths import narrowest_integers
from lightning_optim.export.onnx_file.kernel_macs import measure_macs
from lightning_optim.export.onnx_file.kernels import Kernels, inspect_kernels
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.onnx_file.session import load_session
from lightning_optim.export.runtime.base import Runner, Runtime, check_activations, check_weights, has_unrounded_linear
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.simulator import Simulator


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ONNXRuntime(Runtime):
    """ONNX Runtime: an ONNX file whose layers run in integers, with uint8 activations, int8 weights and int32 biases.

    Linear layers beside ``Unquantized`` activations read a weight that is packed in 8, 4 or 2 bits, with a scale per
    group of inputs if the weight has groups, and compute in float32 (``MatMulNBits``). Other operators beside such
    activations stay in floating point, and the result of the export names them.

    Args:
        packed: Whether weights whose integers fit into 4 or 2 bits are stored in 4 or 2 bits; the runtime widens them
            when it loads the file. Where the one that is installed has no 2-bit integers (up to 1.23), they get 4.
        rounds_inputs: Whether linear layers beside ``Unquantized`` activations round their inputs to int8, block by
            block. The simulation does not round them, so the outputs differ by more than the order of sums. Weights of
            8 and 2 bits are fast in this way alone: in float32, the runtime unpacks them again at every call.
    """

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]] = {
        (Role.CONVOLUTION,): frozenset({"Conv", "FusedConv", "ConvTranspose"}),
        (Role.LINEAR, Role.MATMUL): frozenset(
            {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits", "Einsum", "LSTM", "GRU", "RNN"}
        ),
        (Role.ADD,): frozenset({"Add"}),
        (Role.POOL,): frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "MaxPool"}),
    }

    packed: bool = True
    rounds_inputs: bool = False

    @override
    def check(self, simulator: Simulator) -> None:
        check_activations(
            simulator,
            "ONNX Runtime",
            "uint8 activations of one scale per tensor, or Unquantized ones",
            lambda scheme: scheme.is_exact or _is_affine(scheme),
        )
        check_weights(simulator, "ONNX Runtime", takes_groups=True)
        if self.rounds_inputs and not has_unrounded_linear(simulator):
            raise ExportError("rounds_inputs needs linear layers beside Unquantized activations, there are none")

    @override
    def write(
        self, simulator: Simulator, network: nn.Module, example: Example, path: Path, shapes: OpenShapes
    ) -> Kernels:
        write_qdq(
            simulator,
            network,
            example,
            path,
            AffineDialect(),
            shapes,
            narrowest=narrowest_integers() if self.packed else 8,
            rounds_inputs=self.rounds_inputs,
        )
        return inspect_kernels(path)

    @override
    def load(self, path: Path) -> Runner:
        return load_session(path).run

    @override
    def integer_share(self, path: Path, inputs: Sequence[Any]) -> float | None:
        return measure_macs(path, inputs).integer_share


def check_affine(simulator: Simulator, name: str) -> None:
    """Refuse activations that are not uint8 with one scale, and weights that are not symmetric int8.

    Raises:
        ExportError: If an operator has such an activation or weight; the message names it.
    """
    check_activations(simulator, name, "uint8 activations of one scale per tensor", _is_affine)
    check_weights(simulator, name)


def _is_affine(scheme: Scheme) -> bool:
    return scheme.signed == "uint" and scheme.granularity == "tensor"
