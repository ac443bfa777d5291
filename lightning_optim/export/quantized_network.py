"""Post-training quantization of any module: calibrate it, inspect it, and write it to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

from torch import nn

from lightning_optim.export.fallbacks import Fallbacks
from lightning_optim.export.onnx_file.open_shapes import Dynamic, OpenShapes
from lightning_optim.export.quantized import Acceptance, QuantizedExport, export_quantized
from lightning_optim.export.runtime.base import Runtime
from lightning_optim.export.runtime.find import find_runtime
from lightning_optim.export.verification import Verification, verify
from lightning_optim.quantization.layers import LayerQuantizers
from lightning_optim.quantization.observer.base import Observer
from lightning_optim.quantization.observer.moving_average import MovingAverage
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.post_training.run import apply_methods
from lightning_optim.quantization.quantizer.affine import Affine
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.symmetric import Symmetric
from lightning_optim.quantization.settings import QuantizationSettings, checked_layers
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.layer_errors import LayerErrors, compare_layers
from lightning_optim.quantization.simulation.plan import Plan
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.table import placement_table
from lightning_optim.surgery.select import Targets
from lightning_optim.surgery.torch_private import uncompiled


@final
@dataclass(frozen=True, slots=True)
class QuantizedNetwork:
    """Quantized network: a trained network, and the ranges and quantizers of its integer form.

    Args:
        network: The trained network, in floating point; none of the methods changes it.
        simulator: Ranges and quantizers of the network, from calibration or training.
    """

    network: nn.Module
    simulator: Simulator

    def describe(self) -> str:
        """Return the placement as a table: every operator, whether it computes in integers, its bits and its range.

        The last line gives the share of the multiply-accumulates (MACs) that is to run in integers.
        """
        return describe_placement(self.simulator)

    def simulated(self) -> Callable[..., Any]:
        """Return a function of the network's inputs that computes its output as deployed, on a copy.

        Raises:
            RuntimeError: If there are no ranges yet.
        """
        return self.simulator.forward_of(self.network)

    def export(  # noqa: PLR0913  # one keyword for each question
        self,
        path: str | Path,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        fallbacks: Fallbacks = "named",
        runtime: Runtime | str = "onnxruntime",
        batches: Iterable[Any] = (),
        min_agreement: float = 0.99,
        max_error: float = 0.05,
        dynamic: Dynamic | None = None,
        batch: int | None = None,
    ) -> QuantizedExport:
        """Write the network as a file whose layers run as integer kernels.

        The file is loaded in its runtime and compared with the simulation before it is moved to ``path``.

        Args:
            path: The file to write.
            args: Example positional inputs of the network; without any, those of the first batch.
            kwargs: Example keyword inputs.
            fallbacks: Whether what has no integer kernel may stay in floating point: ``"named"`` (yes, and the result
                names it), ``"refused"`` (only excluded layers), or a sequence of kernels, such as ``"Add"``.
            runtime: The runtime, or its name: ``"onnxruntime"``, ``"openvino"``, ``"executorch"`` or ``"tensorrt"``.
            batches: Inputs on which runtime and simulation are compared, each a tensor, a sequence with one per
                positional input, or a mapping of keyword inputs; without any, the example inputs.
            min_agreement: Smallest share of samples with the same class, in ``[0, 1]``, for outputs that have classes.
            max_error: Largest relative error of every output, at least 0.
            dynamic: Argument of the network's ``forward`` -> its dimensions that are open beside the batch, each with a
                name, such as ``{"images": {2: "height", 3: "width"}}``; two other sizes are compared as well. Without
                it, the file takes the example's sizes alone: ``dimensions`` of the result says what is open.
            batch: The only batch that the file takes, for code that needs a number; ``None`` opens it.

        Raises:
            ExportError: If the network can't be exported, if nothing would be multiplied in integers or something stays
                in floating point that may not, or if an output of the runtime is further from the simulation's than
                accepted.
        """
        acceptance = Acceptance(fallbacks=fallbacks, batches=batches, min_agreement=min_agreement, max_error=max_error)
        shapes = OpenShapes(dynamic=dynamic or {}, batch=batch)
        return export_quantized(
            self.simulator,
            self.network,
            path,
            args,
            kwargs,
            runtime=find_runtime(runtime),
            acceptance=acceptance,
            shapes=shapes,
        )

    @staticmethod
    def verify(path: str | Path, batches: Iterable[Any]) -> Verification:
        """Compare an exported file in ONNX Runtime with an emulation of its integer kernels, value by value.

        Args:
            path: The file, exported for ONNX Runtime.
            batches: Each a tensor, or a sequence with one per input; labels not included.

        Returns:
            How many values of the outputs were compared, and how many are equal bit for bit.
        """
        return verify(path, batches)

    def compare_layers(self, batches: Iterable[Any]) -> LayerErrors:
        """Compare every integer operator with its output in floating point: where does the error arise?

        Args:
            batches: Inputs of the network: a mapping holds keyword inputs, a tuple or list positional ones, all else is
                the only input.

        Returns:
            Two signal-to-quantization-noise ratios for each operator. It prints as a table.

        Raises:
            ValueError: If there is no batch.
        """
        return compare_layers(self.simulator, self.network, batches)


def calibrate(  # noqa: PLR0913  # one keyword for each question
    model: nn.Module,
    data: Iterable[Any],
    *,
    targets: Targets | None = None,
    weight_quantizer: Quantizer | None = None,
    activation_quantizer: Quantizer | None = None,
    observer: Observer | None = None,
    layers: Mapping[str, LayerQuantizers] | None = None,
    num_batches: int = 32,
    methods: Sequence[PostTraining] = (),
) -> QuantizedNetwork:
    """Post-training quantization: learn operators and ranges of a trained network, without training it.

    Args:
        model: The trained network. Every module keeps its mode; weights change by ``methods`` alone.
        data: Batches of inputs: a mapping holds keyword inputs, a tuple or list positional ones, all else is the only
            input. Labels are not among them.
        targets: Modules whose operators run in integers; ``None`` takes all.
        weight_quantizer: Quantizer of weights; ``None`` is int8, symmetric, with a scale per output channel.
        activation_quantizer: Quantizer of activations; ``None`` is uint8 with a zero point.
        observer: How ranges of batches become one; ``None`` averages them.
        layers: Quantizers of some layers in place of these, by keys of your choice (mixed precision).
        num_batches: How many batches to take at most, at least 1.
        methods: Methods that change the weights, in this order, so that rounding costs less accuracy; without any, the
            weights stay as they are.

    Raises:
        TargetError: If no operator runs in integers.
        ValueError: If there is no batch, or one holds NaN or infinities; nothing has changed then.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> quantized = calibrate(net, [torch.rand(16, 4) for _ in range(4)])
        >>> quantized.simulated()(torch.rand(3, 4)).shape
        torch.Size([3, 2])
        >>> [each.layer for each in quantized.compare_layers([torch.rand(16, 4)])]
        ['0', '2']

        ``quantized.export("net.onnx")`` writes the file for ONNX Runtime.
    """
    settings = QuantizationSettings(
        weight_quantizer or Symmetric(),
        activation_quantizer or Affine(),
        observer or MovingAverage(),
        checked_layers(layers or {}),
    )
    settings.check()
    network = uncompiled(model)
    start = settings.starter(network, "", network, targets)
    simulator = start()
    batches = list(islice(data, max(num_batches, 0)))
    run_calibration(simulator, network, batches, num_batches=num_batches)
    return QuantizedNetwork(network, apply_methods(network, simulator, batches, methods, start))


def describe_placement(simulator: Simulator) -> str:
    """Return the placement as a table; before any batch it has no row."""
    return placement_table(simulator.plan or Plan(), simulator.ranges, simulator.bits_of)
