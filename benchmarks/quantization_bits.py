"""Widths of single layers beside one width for all, at equal average bits, after training.

    python -m benchmarks.quantization_bits [--seeds 0 1 ...]

The residual net and the vision transformer of the demo are trained in floating point on the digits. What each layer
loses at 2 to 8 bits is measured on training images, as the divergence of the classes' probabilities, and widths are
chosen so that weights take 3 and 4 bits on average, of all weights (``size``) or of all multiply-accumulates
(``macs``). Nothing is trained afterwards; activations have 8 bits. Cells give the accuracy on the 450 test
digits, by writers that training never saw, and the mean squared distance of their logits to those of the net in
floating point. The last line is one JSON object; ``least_gain`` is the smallest difference, in percentage points, that
widths of single layers make to the mean accuracy over seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import parser_for, quiet, quiet_trainer
from lightning_optim import QATFakeQuant
from lightning_optim.cost import Cost, MACs, WeightBytes
from lightning_optim.demo import Classifier, Digits, ResidualNet, VisionTransformer
from lightning_optim.quantization import (
    BitSensitivity,
    Symmetric,
    allocate_bits,
    bit_sensitivity,
    divergence,
    layer_quantizers,
)

QUANTIZERS = tuple(Symmetric(bits=bits) for bits in (2, 3, 4, 5, 6, 8))
AVERAGES = (3, 4)
COSTS: Mapping[str, Cost] = {"size": WeightBytes(), "macs": MACs()}
# Network, epochs and peak learning rate.
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int, float]] = {
    "residual": (lambda: ResidualNet(widths=(16, 32, 64)), 15, 4e-3),
    "vit": (VisionTransformer, 20, 2e-3),
}


def trained(name: str, seed: int) -> nn.Module:
    """Train one of the networks in floating point."""
    make, epochs, lr = NETWORKS[name]
    seed_everything(seed)
    module = Classifier(make(), lr=lr, memory_format="contiguous")
    quiet_trainer([], max_epochs=epochs, limit_val_batches=0).fit(module, Digits(seed=seed).train_dataloader())
    network: nn.Module = module.net
    return network.eval()


def judged(network: nn.Module, batches: Sequence[Tensor], quantizing: QATFakeQuant) -> tuple[float, float]:
    """Calibrate; then accuracy in percent and squared distance of the logits, on the test images."""
    test = Digits().splits[2]
    quantizing.calibrate(network, batches, num_batches=len(batches))
    with torch.inference_mode():
        found, wanted = quantizing.simulated()(test.images), network(test.images)
    return percent(found, test.labels), float((found - wanted).square().mean())


def percent(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    return 100.0 * float((logits.argmax(1) == labels).double().mean())


def compared(network: nn.Module, batches: Sequence[Tensor], table: BitSensitivity) -> dict[str, tuple[float, float]]:
    """Each way of giving bits, and what comes of it."""
    cells = {}
    for average in AVERAGES:
        cells[f"w{average}_uniform"] = judged(network, batches, QATFakeQuant(weight_quantizer=Symmetric(bits=average)))
        for name, cost in COSTS.items():
            widths = allocate_bits(table, average_bits=average, cost=cost)
            layers = layer_quantizers(widths, QUANTIZERS)
            cells[f"w{average}_{name}"] = judged(network, batches, QATFakeQuant(layers=layers))
    return cells


def measure(seeds: Sequence[int]) -> dict[str, Any]:
    """Train, choose and compare; print a table."""
    shown = Table(title="Widths of single layers beside one for all")
    for column in ("net", "widths", "accuracy, % (seeds)", "distance of logits"):
        shown.add_column(column, justify="left" if column in ("net", "widths") else "right")
    figures: dict[str, Any] = {}
    gains = []
    test = Digits().splits[2]
    for name in NETWORKS:
        runs = []
        for seed in seeds:
            network = trained(name, seed)
            batches = Digits().splits[0].images[:256].chunk(2)
            table = bit_sensitivity(network, batches, QUANTIZERS, measure=divergence(network, batches))
            with torch.inference_mode():
                base = percent(network(test.images), test.labels), 0.0
            runs.append({"float": base} | compared(network, batches, table))
        for way in runs[0]:
            accuracies = [run[way][0] for run in runs]
            distance = statistics.mean(run[way][1] for run in runs)
            shown.add_row(name, way, " ".join(f"{value:.2f}" for value in accuracies), f"{distance:.4g}")
            figures |= {f"{name}_{way}_accuracies": accuracies, f"{name}_{way}_distance": distance}
        means = {way: statistics.mean(run[way][0] for run in runs) for way in runs[0]}
        gains += [means[f"w{bits}_{cost}"] - means[f"w{bits}_uniform"] for bits in AVERAGES for cost in COSTS]
    Console().print(shown)
    return figures | {"least_gain": min(gains)}


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of weights and batches")
    options = parser.parse_args()
    quiet()
    print(json.dumps({"benchmark": "quantization_bits", "torch": torch.__version__} | measure(options.seeds)))


if __name__ == "__main__":
    main()
