"""Bit sensitivity: what a network loses when one layer alone has few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from torch import Tensor, nn

from lightning_optim.cost.count import count_macs
from lightning_optim.errors import TargetError
from lightning_optim.quantization.layers import LayerQuantizers
from lightning_optim.quantization.observer.base import Observer
from lightning_optim.quantization.observer.moving_average import MovingAverage
from lightning_optim.quantization.quantizer.affine import Affine
from lightning_optim.quantization.quantizer.base import Operand, Quantizer
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.quantizer.symmetric import Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration, run_hooked
from lightning_optim.quantization.simulation.simulator import Forward, Simulator
from lightning_optim.quantization.simulation.weighted_layers import WeightedLayer, find_layers
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.inputs import call_network
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.select import Targets
from lightning_optim.surgery.torch_private import pytree

Measure = Callable[[Forward], float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """Losses while one layer alone has few bits, by width.

    Args:
        layer: Name of the module, relative to the network.
        num_weights: How many weights it has.
        macs: Multiply-accumulates of one pass over the first batch.
        values: The loss at each width of the table; lower is better.
    """

    layer: str
    num_weights: int
    macs: int
    values: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BitSensitivity:
    """Losses of all layers, over the same widths.

    Args:
        bits: Widths, ascending.
        base: The loss when no layer has few bits.
        layers: One entry a layer, in the order of the forward pass.

    Raises:
        ValueError: If widths do not ascend, or a layer has not one value for each.
    """

    bits: tuple[int, ...]
    base: float
    layers: tuple[LayerLoss, ...]

    def __post_init__(self) -> None:
        if not self.bits or any(left >= right for left, right in pairwise(self.bits)):
            raise ValueError(f"bits must ascend, got {list(self.bits)}")
        for layer in self.layers:
            if len(layer.values) != len(self.bits):
                raise ValueError(f"{layer.layer} has {len(layer.values)} values for {len(self.bits)} widths")

    def losses(self, layer: LayerLoss) -> list[float]:
        """How much more than the base is lost at each width; at least 0, and never more with more bits."""
        worst, losses = 0.0, []
        for value in reversed(layer.values):
            worst = max(worst, value - self.base)
            losses.append(worst)
        return losses[::-1]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BitLatency:
    """What the deployed network takes while one layer alone has few bits.

    Args:
        bits: Widths, ascending.
        base: Seconds of a pass when no layer has few bits.
        layers: Name of a layer -> seconds of a pass at each width.
    """

    bits: tuple[int, ...]
    base: float
    layers: Mapping[str, tuple[float, ...]]


def bit_sensitivity(
    network: nn.Module,
    batches: Sequence[Any],
    weight_quantizers: Sequence[Quantizer],
    *,
    rest: Quantizer | None = None,
    activation_quantizer: Quantizer | None = None,
    observer: Observer | None = None,
    measure: Measure | None = None,
) -> BitSensitivity:
    """Round one layer's weight at a time with each quantizer, and measure. The network stays as it is.

    Args:
        network: The trained network.
        batches: Inputs, as ``run_calibration`` takes them.
        weight_quantizers: What to try, one for each width.
        rest: Quantizer of all other weights; ``None`` is int8 with a scale per output channel.
        activation_quantizer: Quantizer of activations; ``None`` is uint8 with a zero point.
        observer: How ranges of batches become one; ``None`` averages them.
        measure: Returns what is lost by a function of the network's inputs, lower is better: ``divergence``, or one
            minus an accuracy. ``None`` is the mean squared distance to the outputs of the network as it is, over all
            batches.

    Raises:
        TargetError: If no layer runs in integers.
        ValueError: If two quantizers have one width, or one can't quantize weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> table = bit_sensitivity(net, [Tensor(16, 4).fill_(1.0)], [Symmetric(bits=2), Symmetric(bits=4)])
        >>> [(layer.layer, layer.num_weights) for layer in table.layers]
        [('0', 32), ('2', 16)]
    """
    trials = bit_trials(
        network,
        batches,
        weight_quantizers,
        rest=rest,
        activation_quantizer=activation_quantizer,
        observer=observer,
    )
    measure = measure or _against(network, batches, _distance)
    macs = _count_macs(network, trials.layers, batches[0])

    def loss(simulator: Simulator) -> float:
        return float(measure(simulator.forward_of(network)))

    found = tuple(
        LayerLoss(
            layer=layer.name,
            num_weights=layer.module.weight.numel(),
            macs=macs[layer.name],
            values=tuple(loss(trials.of(layer.name, bits)) for bits in trials.bits),
        )
        for layer in trials.layers
    )
    return BitSensitivity(bits=trials.bits, base=loss(trials.base()), layers=found)


@final
@dataclass(frozen=True, slots=True)
class BitTrials:
    """A calibrated network of which one layer at a time has few bits.

    Args:
        layers: The layers that run in integers, in the order of the forward pass.
        bits: Widths to try, ascending.
        make: Name of a layer -> its width in words -> the simulator.
    """

    layers: Sequence[WeightedLayer]
    bits: tuple[int, ...]
    make: Callable[[Mapping[str, str]], Simulator]

    def base(self) -> Simulator:
        """The network without few bits."""
        return self.make({})

    def of(self, layer: str, bits: int) -> Simulator:
        """The network with one layer of few bits."""
        return self.make({layer: str(bits)})


def bit_trials(
    network: nn.Module,
    batches: Sequence[Any],
    weight_quantizers: Sequence[Quantizer],
    *,
    rest: Quantizer | None = None,
    activation_quantizer: Quantizer | None = None,
    observer: Observer | None = None,
) -> BitTrials:
    """Calibrate once; every simulator has these ranges. Arguments and errors are those of ``bit_sensitivity``."""
    by_bits = quantizers_by_bits(weight_quantizers)
    entries = {str(bits): _entry(quantizer) for bits, quantizer in by_bits.items()}
    settings = (rest or Symmetric(), activation_quantizer or Affine(), observer or MovingAverage())
    calibrated = Simulator(*settings)
    run_calibration(calibrated, network, batches, num_batches=len(batches))
    assert calibrated.plan is not None
    layers = find_layers(network, calibrated.plan)
    if not layers:
        raise TargetError("no convolution or linear layer runs in integers: see QATFakeQuant.describe()")

    def make(assigned: Mapping[str, str]) -> Simulator:
        simulator = Simulator(*settings, entries)
        simulator.load_state_dict(calibrated.state_dict())
        simulator.place(calibrated.excluded, assigned)
        simulator.example = calibrated.example
        return simulator

    return BitTrials(layers, tuple(by_bits), make)


def quantizers_by_bits(quantizers: Sequence[Quantizer]) -> dict[int, Quantizer]:
    """Order quantizers of weights by their width.

    Raises:
        ValueError: If there is none, two have one width, or one can't quantize weights.
    """
    for quantizer in quantizers:
        check_operand(quantizer, Operand.WEIGHT)
    found = {quantizer.scheme.bits: quantizer for quantizer in quantizers}
    if not found or len(found) < len(quantizers):
        widths = [quantizer.scheme.bits for quantizer in quantizers]
        raise ValueError(f"weight_quantizers must have different widths, at least one, got {widths}")
    return dict(sorted(found.items()))


def _entry(quantizer: Quantizer) -> LayerQuantizers:
    return LayerQuantizers(targets=Targets(), weight_quantizer=quantizer)


def divergence(network: nn.Module, batches: Sequence[Any]) -> Measure:
    """Return a measure for classifiers: how far the classes' probabilities are from the network's as it is.

    It is the Kullback-Leibler divergence of the softmax over the last dimension, averaged over all rows of all outputs.
    Unlike a squared distance of logits it does not count what no answer depends on.

    Args:
        network: The trained network; its outputs are logits.
        batches: Inputs, as ``bit_sensitivity`` takes them.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> divergence(net, [Tensor(4, 2).fill_(1.0)])(net)
        0.0
    """
    return _against(network, batches, _divergence)


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).double().square().flatten()


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    logs, held = found.double().log_softmax(-1), wanted.double().log_softmax(-1)
    return (held.exp() * (held - logs)).sum(-1).flatten()


def _against(network: nn.Module, batches: Sequence[Any], compare: Callable[[Tensor, Tensor], Tensor]) -> Measure:
    """The mean of what tells outputs from those of the network as it is."""

    def outputs(forward: Forward) -> list[Tensor]:
        with evaluating(network):
            tensors = [tensor for batch in batches for tensor in tensors_of(call_network(forward, batch))]
        return [tensor for tensor in tensors if tensor.is_floating_point()]

    wanted = outputs(network)

    def measure(forward: Forward) -> float:
        errors = [compare(found, held) for found, held in zip(outputs(forward), wanted, strict=True)]
        return float(sum(error.sum() for error in errors)) / sum(error.numel() for error in errors)

    return measure


def _count_macs(network: nn.Module, layers: Sequence[WeightedLayer], batch: Any) -> dict[str, int]:
    """Multiply-accumulates of each layer, in one pass over a batch."""
    calls: dict[str, tuple[Any, Any]] = {}

    def watch(layer: WeightedLayer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[layer.name] = pytree.tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))

        return hook

    handles = [layer.module.register_forward_pre_hook(watch(layer), with_kwargs=True) for layer in layers]
    run_hooked(network, [batch], handles)
    return {layer.name: count_macs(layer.module, *calls[layer.name]) for layer in layers}
