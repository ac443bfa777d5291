"""Speed and size of exported networks: integers beside floating point, one process, one thread, call by call in turn.

    python -m benchmarks.quantization_speed

Networks are calibrated on noise: time does not depend on what they have learned. Times are CPU time; ratios are float
over integer. The last line is JSON. OpenVINO's row needs the package; without it, it is null.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import parser_for, quiet, show_figures
from lightning_optim.export import Acceptance, ONNXRuntime, export_onnx, export_quantized, load_session, time_models
from lightning_optim.quantization import Affine, MinMax, Symmetric, Unquantized
from lightning_optim.quantization.simulation.simulator import Simulator

_BATCH = 32


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.short = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H, W]``."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    """ResNet-8 for images of 32 x 32."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*(Block(i, o, 1 + (place > 0)) for place, (i, o) in enumerate(pairs)))
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, 10]``."""
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Attention(nn.Module):
    """A transformer block with attention written by hand."""

    def __init__(self, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, T, D]``."""
        size, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(size, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        weights = ((q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(size, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Three blocks over the 16 patches of an image of 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 128, 8, 8), nn.Parameter(torch.randn(1, 16, 128) * 0.02)
        self.blocks, self.norm = nn.Sequential(*(Attention() for _ in range(3))), nn.LayerNorm(128)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, 10]``."""
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.norm(self.blocks(x)).mean(1))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name -> network and a batch of its inputs."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(768, 3072), nn.ReLU(), nn.Linear(3072, 768))
    image = torch.randn(_BATCH, 3, 32, 32)
    return {"cnn": (ResNet(), image), "vit": (ViT(), image), "mlp": (mlp, torch.randn(64, 768))}


def calibrate(network: nn.Module, batch: Tensor, bits: int = 8, weight: Symmetric | None = None) -> Simulator:
    """Return a simulator that knows the network's operators and ranges; with ``weight``, one of weights alone."""
    simulator = Simulator(weight or Symmetric(bits=bits), Unquantized() if weight else Affine(), MinMax())
    with torch.no_grad(), simulator.observing():
        for _ in range(3):
            simulator.run(network.eval(), network.forward, (batch,), {})
            simulator.finish_batch()
    return simulator


def measure(seconds: float = 4.0) -> dict[str, Any]:
    """Return speed-ups in ONNX Runtime and OpenVINO, and sizes of packed weights as shares of those of int8."""
    found: dict[str, Any] = {"openvino_speedup_cnn": None}
    lenient = Acceptance(
        fallbacks="refused", min_agreement=0.0, max_error=math.inf
    )  # what has learned nothing answers by chance
    with tempfile.TemporaryDirectory() as folder:
        for name, (network, batch) in networks().items():
            simulator, paths = calibrate(network, batch), {kind: Path(folder, f"{name}_{kind}.onnx") for kind in "fi"}
            export_onnx(network, (batch,), paths["f"])
            written = export_quantized(simulator, network, paths["i"], (batch,), acceptance=lenient)
            times = time_models(paths, batch.numpy(), (len(batch),), seconds=seconds)
            found[f"ort_speedup_{name}"] = times["f"][len(batch)].cpu_ms / times["i"][len(batch)].cpu_ms
            found[f"ort_ms_{name}"] = times["i"][len(batch)].cpu_ms
            found[f"ort_floating_{name}"] = written.kernels.floating
            if name == "cnn" and importlib.util.find_spec("openvino"):
                found["openvino_speedup_cnn"] = _time_openvino(paths, batch, seconds)
        for bits in (4, 2):
            found.update(_measure_packing(bits, Path(folder)))
        found.update(_measure_weights_alone(Path(folder), seconds))
    return found


def _measure_weights_alone(folder: Path, seconds: float) -> dict[str, Any]:
    """Speed and size of linear layers whose weights alone are packed, in groups of 128, at a batch of one."""
    network, batch = networks()["mlp"]
    paths: dict[str, Path] = {"float": folder / "float.onnx"}
    export_onnx(network, (batch,), paths["float"])
    found: dict[str, Any] = {}
    for bits in (8, 4, 2):
        simulator = calibrate(network, batch, weight=Symmetric(bits=bits, granularity="group", group_size=128))
        for kind, rounds in (("exact", False), ("fast", True)):
            name = f"weights{bits}_{kind}"
            written = export_quantized(
                simulator,
                network,
                folder / f"{name}.onnx",
                (batch,),
                runtime=ONNXRuntime(rounds_inputs=rounds),
                acceptance=Acceptance(fallbacks="refused", min_agreement=0.0, max_error=math.inf),
            )
            paths[name], found[f"{name}_max_error"] = written.path, written.parity.max_abs_error
    times = time_models(paths, batch.numpy(), (1,), seconds=seconds)
    for name, path in list(paths.items())[1:]:
        found[f"{name}_speedup"] = times["float"][1].cpu_ms / times[name][1].cpu_ms
        found[f"{name}_bytes_ratio"] = path.stat().st_size / paths["float"].stat().st_size
    return found


def _time_openvino(paths: dict[str, Path], batch: Tensor, seconds: float) -> float:
    """Float over integer time of one call in OpenVINO; its thread is not the caller's, so all of the process counts."""
    import openvino

    calls = {}
    for kind, path in paths.items():
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", settings)
        calls[kind] = (model.create_infer_request(), batch.numpy())
    samples: dict[str, list[float]] = {kind: [] for kind in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for kind, (request, array) in calls.items():
            began = time.process_time()
            request.infer([array])
            samples[kind].append(time.process_time() - began)
    return statistics.median(samples["f"]) / statistics.median(samples["i"])


def _measure_packing(bits: int, folder: Path) -> dict[str, Any]:
    """Bytes of a packed file and of its weights, as shares of int8's, and whether both files answer alike."""
    torch.manual_seed(0)
    network, batch = ResNet((32, 64, 128)), torch.randn(_BATCH, 3, 32, 32)
    simulator, files = calibrate(network, batch, bits), {}
    for packed in (False, True):
        files[packed] = export_quantized(
            simulator,
            network,
            folder / f"{bits}_{packed}.onnx",
            (batch,),
            runtime=ONNXRuntime(packed=packed),
            acceptance=Acceptance(fallbacks="refused", min_agreement=0.0, max_error=math.inf),
        )
    answers = [load_session(each.path).run(batch)[0] for each in files.values()]
    weights = {packed: _weight_bytes(each.path) for packed, each in files.items()}
    return {
        f"int{bits}_bytes_ratio": weights[True] / weights[False],
        f"int{bits}_file_ratio": files[True].num_bytes / files[False].num_bytes,
        f"int{bits}_is_exact": bool((answers[0] == answers[1]).all()),
        f"int{bits}_floating": files[True].kernels.floating,
    }


def _weight_bytes(path: Path) -> int:
    """Bytes of all weights of convolutions and linear layers."""
    return sum(len(each.raw_data) for each in onnx.load(path).graph.initializer if len(each.dims) > 1)


def main() -> None:
    """Measure, and print the figures."""
    parser = parser_for(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="to spend on each comparison")
    options = parser.parse_args()
    quiet()
    figures = measure(options.seconds)
    show_figures("Deployed int8", figures)
    print(json.dumps({"benchmark": "quantization_speed", **figures}))


if __name__ == "__main__":
    main()
