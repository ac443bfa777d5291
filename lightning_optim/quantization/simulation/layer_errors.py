"""Quantization error of a network, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.quantization.simulation.backend import Backend, FloatBackend, WrappedBackend
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.inputs import call_network
from lightning_optim.surgery.modes import evaluating


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """Quantization error of one operator's output, after the batch norm and the ReLU that its kernel takes in.

    Args:
        layer: Name of the module that it ran in.
        operator: Its key: the module, the torch function, and the number of the call if it is not the first.
        own_sqnr: Signal-to-quantization-noise ratio in dB, were this operator alone quantized; higher is better.
        sqnr: The same ratio in the quantized network, where the errors of all operators before it arrive, too.
    """

    layer: str
    operator: str
    own_sqnr: float
    sqnr: float


@final
@dataclass(frozen=True, slots=True)
class LayerErrors:
    """Quantization errors of all operators that run in integers, in the order of the forward pass.

    Args:
        layers: One entry an operator.
    """

    layers: tuple[LayerError, ...]

    def __iter__(self) -> Iterator[LayerError]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        lines = [("operator", "own SQNR (dB)", "SQNR (dB)")]
        lines += [(each.operator, f"{each.own_sqnr:.1f}", f"{each.sqnr:.1f}") for each in self.layers]
        width = max(len(line[0]) for line in lines)
        return "\n".join(f"{name.ljust(width)}  {own:>13}  {whole:>9}" for name, own, whole in lines)


@dataclass(slots=True)
class _Noise:
    """Energy of a signal, and of what was added to it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        self.signal += float(wanted.double().square().sum())
        self.noise += float((found.double() - wanted.double()).square().sum())

    @property
    def sqnr(self) -> float:
        """``10 log10(signal / noise)``; infinite without noise."""
        if not self.noise:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@final
@dataclass(slots=True)
class _Floats:
    """Outputs of one pass in floating point, by key: an output may be read several times."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)

    def keep(self, key: str, value: Tensor) -> None:
        self.values.setdefault(key, []).append(value.detach().clone())


@final
class _ComparedBackend(WrappedBackend):
    """Comparing backend: simulates, and compares what each operator puts out with its output in floating point.

    Args:
        inner: The backend that simulates.
        floats: The outputs in floating point, of the same batch.
        found: Key of an operator -> energy of its output and of the difference, summed up here.
        corrects: Whether the next operators read the output in floating point, so that each has only its own error.
    """

    def __init__(self, inner: Backend, floats: _Floats, found: dict[str, _Noise], *, corrects: bool) -> None:
        super().__init__(inner)
        self._floats, self._found, self._corrects = floats, found, corrects
        self._reads: Counter[str] = Counter()

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        rounded = super().activation(tensor, key)
        floats, place = self._floats.values.get(key, []), self._reads[key]
        self._reads[key] += 1
        if place >= len(floats):
            return rounded
        self._found.setdefault(key, _Noise()).add(floats[place], rounded)
        # What no integer operator puts out is rounded for its reader: that is part of the reader's own error.
        is_output = "<" not in key
        return floats[place] if self._corrects and is_output else rounded


@torch.no_grad()
def compare_layers(simulator: Simulator, network: nn.Module, batches: Iterable[Any]) -> LayerErrors:
    """Compare every integer operator of a simulated network with its output in floating point.

    Each batch takes three passes: in floating point, quantized, and quantized with every operator reading what the
    network in floating point puts out. The last one tells where an error arises, the second one where it arrives; ONNX
    Runtime's debugging tools call them ``qdq_err`` and ``xmodel_err``, though its ``qdq_err`` leaves weights out.

    Args:
        simulator: Calibrated, or trained.
        network: The network; it stays as it is.
        batches: Inputs, as ``run_calibration`` takes them.

    Raises:
        RuntimeError: If there are no ranges yet.
        ValueError: If there is no batch.
    """
    if not simulator.is_ready or simulator.plan is None:
        raise RuntimeError("there are no activation ranges yet: calibrate, or train at least two batches")
    plain = type(network).forward.__get__(network)
    own, arrived = dict[str, _Noise](), dict[str, _Noise]()

    def run(backend: Backend, batch: Any) -> None:
        def placed(*args: Any, **kwargs: Any) -> None:
            with simulator.placed(network, backend) as placement:
                output = plain(*args, **kwargs)
            placement.finish(output)

        call_network(placed, batch)

    with evaluating(network):
        for batch in batches:
            floats = _Floats()
            run(FloatBackend(floats.keep), batch)
            for found, corrects in ((arrived, False), (own, True)):
                run(_ComparedBackend(simulator.backend(simulator.ranges), floats, found, corrects=corrects), batch)
    if not arrived:
        raise ValueError("comparing layers needs at least one batch, got none")
    operators = {key: each for key, each in simulator.plan.operators.items() if each.is_integer and key in arrived}
    return LayerErrors(
        tuple(
            LayerError(layer=each.path, operator=key, own_sqnr=own[key].sqnr, sqnr=arrived[key].sqnr)
            for key, each in operators.items()
        )
    )
