"""Settings of quantization-aware training, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import final

from torch import nn

from lightning_optim.quantization.layers import LayerQuantizers, assign_layers
from lightning_optim.quantization.observer.base import Observer
from lightning_optim.quantization.quantizer.base import Operand, Quantizer
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.select import Targets, named_modules


@final
@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """Settings of what a simulator rounds with, and of how it finds ranges.

    Args:
        weight: Quantizer of weights.
        activation: Quantizer of activations.
        observer: Turns ranges of batches into one range.
        layers: Quantizers of some layers in place of these, by key.

    Example:
        >>> from lightning_optim.quantization import MinMax
        >>> from lightning_optim.quantization import Affine
        >>> from lightning_optim.quantization import Symmetric
        >>> settings = QuantizationSettings(Symmetric(), Affine(), MinMax())
        >>> settings.check()
        >>> settings.start(excluded=frozenset({"head"})).is_ready
        False
    """

    weight: Quantizer
    activation: Quantizer
    observer: Observer
    layers: Mapping[str, LayerQuantizers] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what is no quantizer or no observer, and quantizers that can't quantize what they are for.

        Raises:
            TypeError: Naming the keyword of ``QATFakeQuant``.
            ValueError: If a quantizer can't quantize weights, or activations.
        """
        kinds = {"weight_quantizer": (self.weight, Quantizer), "activation_quantizer": (self.activation, Quantizer)}
        for keyword, (value, kind) in {**kinds, "observer": (self.observer, Observer)}.items():
            if not isinstance(value, kind):
                raise TypeError(f"{keyword} must be of a class derived from {kind.__name__}, got {value!r}")
        check_operand(self.weight, Operand.WEIGHT)
        check_operand(self.activation, Operand.ACTIVATION)

    def start(self, excluded: frozenset[str] = frozenset(), assigned: Mapping[str, str] | None = None) -> Simulator:
        """Return a simulator that has seen nothing.

        Args:
            excluded: Names of the modules whose operators stay in floating point.
            assigned: Name of a module -> key of its entry in ``layers``.
        """
        simulator = Simulator(self.weight, self.activation, self.observer, self.layers)
        simulator.place(excluded, assigned or {})
        return simulator

    def starter(
        self, root: nn.Module, name: str, network: nn.Module, targets: Targets | None
    ) -> Callable[[], Simulator]:
        """Return what starts simulators of one network, each of which has seen nothing.

        Args:
            root: The LightningModule, or a network alone: where names begin.
            name: The network's plain name in it.
            network: The network.
            targets: Modules whose operators are simulated; ``None`` is all.

        Raises:
            TargetError: If ``targets``, or those of an entry of ``layers``, match no module of the network.
            ValueError: If two entries match one module.
        """
        excluded = excluded_modules(root, name, network, targets)
        return partial(self.start, excluded, assign_layers(root, network, self.layers))


def checked_layers(layers: Mapping[str, LayerQuantizers]) -> dict[str, LayerQuantizers]:
    """Return the quantizers of single layers, by key.

    Raises:
        TypeError: If an entry is something else.
    """
    for key, entry in layers.items():
        if not isinstance(entry, LayerQuantizers):
            raise TypeError(f"layers.{key} must be LayerQuantizers, got {entry!r}")
    return {str(key): entry for key, entry in layers.items()}


def checked_freeze(freeze: Mapping[str, float]) -> dict[str, float]:
    """Return when each part is frozen, defaults filled in.

    Raises:
        ValueError: If a part is unknown, or a fraction out of range.
    """
    defaults = {"observer": 0.9, "batch_norm": 0.5}
    unknown = sorted(set(freeze) - set(defaults))
    if unknown:
        raise ValueError(f"freeze knows {sorted(defaults)}, got {unknown[0]!r}")
    for part, fraction in freeze.items():
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"freeze.{part} must be in [0, 1], got {fraction}")
    return {part: float(freeze.get(part, default)) for part, default in defaults.items()}


def excluded_modules(root: nn.Module, name: str, network: nn.Module, targets: Targets | None) -> frozenset[str]:
    """Return the names, within a network, of the modules that ``targets`` leave out.

    Args:
        root: The LightningModule, or a network alone.
        name: The network's plain name in it.
        network: The network.
        targets: What is chosen; ``None`` is all.
    """
    if targets is None:
        return frozenset()
    chosen = set(targets.select(root, (nn.Module,)).values()) | ({root} if _takes_all(targets) else set())
    own = {"": network, **named_modules(network)}
    return frozenset(key for key, module in own.items() if module not in chosen)


def _takes_all(targets: Targets) -> bool:
    return "*" in targets.include and not targets.types
