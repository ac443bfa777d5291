"""Is what was simulated what is deployed?

    python -m benchmarks.quantization_proof [--quick]

- ``verify``: three networks (residual, depthwise, dense) are trained on Fashion-MNIST, in floating point and then under
  ``QATFakeQuant``, and exported; a thousand test images and more are run through ONNX Runtime and through an emulator
  of its integer kernels, and logits compared to the bit.
- simulator: the residual network and the vision transformer of the demo are trained likewise; the training simulator is
  compared with the file on the 10,000 test images: the largest difference of a logit in steps of its scale, and how
  often both name the same class.

The last line is one JSON object. ``--quick`` trains a tenth as long.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.common import parser_for, quiet, quiet_trainer
from lightning_optim import QATFakeQuant
from lightning_optim.demo import Classifier, FashionMNIST, ResidualNet, VisionTransformer
from lightning_optim.export import QuantizedExport, load_session, verify

SIDE = 28
PROMISED = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "AveragePool")
PROMISED += ("GlobalAveragePool", "ReduceMean", "MaxPool")


@dataclass(frozen=True, kw_only=True)
class Study:
    """How long to train, and on how much to compare.

    Args:
        float_batches: Of 128 images, in floating point.
        quantized_batches: Under fake quantization.
        verified: Test images that the emulator computes.
    """

    float_batches: int = 4 * 429
    quantized_batches: int = 429
    verified: int = 2000


QUICK = Study(float_batches=160, quantized_batches=48, verified=1000)


class Depthwise(nn.Module):
    """Separable convolutions, ReLU6 and windowed average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._block(1, 16, 3, 2, 1)
        self.layers = nn.Sequential(*(self._separable(*sizes) for sizes in ((16, 24, 1), (24, 32, 2), (32, 32, 1))))
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(32 * 9, 10)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, 1, 28, 28]`` -> logits ``[B, 10]``."""
        logits: Tensor = self.head(self.pool(self.layers(self.stem(images))).flatten(1))
        return logits

    @staticmethod
    def _block(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))

    def _separable(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(self._block(inputs, inputs, 3, stride, inputs), self._block(inputs, outputs, 1, 1, 1))


class Dense(nn.Module):
    """Layers that read all that came before, max-pooling, a mean over the image."""

    def __init__(self, growth: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, growth, 3, padding=1, bias=False), nn.BatchNorm2d(growth)
        self.convs = nn.ModuleList(
            nn.Conv2d(growth * (place + 1), growth, 3, padding=1, bias=False) for place in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth) for _ in range(depth))
        self.head = nn.Linear(growth * (depth + 1), 10)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, 1, 28, 28]`` -> logits ``[B, 10]``."""
        features = F.max_pool2d(F.relu(self.norm(self.stem(images))), 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = torch.cat([features, F.relu(norm(conv(features)))], 1)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def train(network: nn.Module, study: Study, lr: float, seed: int = 0) -> QATFakeQuant:
    """Train in floating point, then simulated."""
    quantizing = QATFakeQuant()
    for callbacks, batches, peak in (
        ([], study.float_batches, lr),
        ([quantizing], study.quantized_batches, lr / 10),
    ):
        seed_everything(seed)
        module = Classifier(network, lr=peak, memory_format="contiguous")
        loader = FashionMNIST(seed=seed).train_dataloader()
        quiet_trainer(callbacks, max_steps=batches, max_epochs=-1).fit(module, loader)
    return quantizing


def test_images() -> Tensor:
    """All of them, ``[10000, 1, 28, 28]``."""
    images: Tensor = FashionMNIST().splits[2].images
    return images.float() / 255.0


def verified(network: nn.Module, study: Study, path: Path) -> tuple[int, int, QuantizedExport]:
    """Train, export, and emulate: logits compared, logits equal, and the export."""
    exported = train(network, study, 5e-3).export(path, fallbacks="refused")
    found = verify(exported.path, test_images()[: study.verified].split(250))
    return found.compared, found.equal, exported


def simulated(quantizing: QATFakeQuant, exported: QuantizedExport) -> dict[str, float]:
    """Compare the training simulator with the file on all test images."""
    session, forward = load_session(exported.path), quantizing.simulated()
    worst = 0.0
    agreed = total = 0
    for images in test_images().split(500):
        expected, found = forward(images), torch.from_numpy(session.run(images)[0])
        values = torch.unique(found)
        worst = max(worst, float((expected - found).abs().max() / values.diff().min()))
        agreed, total = agreed + int((expected.argmax(1) == found.argmax(1)).sum()), total + len(images)
    return {"top1_agreement": agreed / total, "worst_lsb": worst}


def integer_fraction(exports: Mapping[str, QuantizedExport]) -> float:
    """Share of the convolutions, linear layers, additions and poolings of all files that are integer kernels."""
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for exported in exports.values():
        integer.update(exported.kernels.integer)
        floating.update({name: n for name, n in exported.kernels.floating.items() if name in PROMISED})
    return sum(integer.values()) / (sum(integer.values()) + sum(floating.values()))


def measure(study: Study | None = None) -> dict[str, float]:
    """Train, export and compare everything."""
    study = study or Study()
    found: dict[str, float] = {}
    exports: dict[str, QuantizedExport] = {}
    with tempfile.TemporaryDirectory() as folder:
        compared = equal = 0
        makers = {"residual": lambda: ResidualNet(widths=(16, 32, 64), stem_stride=2), "depthwise": Depthwise}
        for name, make in {**makers, "dense": Dense}.items():
            torch.manual_seed(0)
            more, same, exports[name] = verified(make(), study, Path(folder) / f"{name}.onnx")
            found[f"verify_exact_fraction_{name}"] = same / more
            compared, equal = compared + more, equal + same
        found |= {"verify_exact_fraction": equal / compared, "verify_compared": compared}
        torch.manual_seed(0)
        pairs = {"cnn": (ResidualNet(stem_stride=2), 5e-3), "vit": (VisionTransformer(resolution=SIDE), 1e-3)}
        for name, (network, lr) in pairs.items():
            quantizing = train(network, study, lr)
            exports[name] = quantizing.export(Path(folder) / f"{name}.onnx", fallbacks="refused")
            found |= {f"simulator_{key}_{name}": value for key, value in simulated(quantizing, exports[name]).items()}
    return found | {"integer_kernel_fraction": integer_fraction(exports)}


def main() -> None:
    """Measure, and print one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training")
    options = parser.parse_args()
    quiet()
    found = measure(QUICK if options.quick else Study())
    print(json.dumps({"benchmark": "quantization_proof", "torch": torch.__version__} | found))


if __name__ == "__main__":
    main()
