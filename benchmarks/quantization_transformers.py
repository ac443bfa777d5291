"""Transformers at 128 tokens: how much of them is multiplied in integers, and how much faster that is.

    python -m benchmarks.quantization_transformers [--width 256] [--layers 2] [--seconds 4]

BERT, GPT-2 and ViT of the package transformers, made from their configurations, and ``nn.TransformerEncoder`` are
calibrated on noise: time does not depend on what they have learned. ``share`` is that of the multiply-accumulates in
integers, in ONNX Runtime; attention's own two products stay in floating point. Times are CPU time of one call on one
thread, files in floating point and in integers taking turns. Without transformers, only the encoder has figures. The
last line is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import parser_for, quiet, show_figures
from lightning_optim.export import calibrate, export_onnx, time_models

TOKENS, HEADS, WORDS = 128, 4, 1000
BATCHES = (1, 8)
Inputs = dict[str, Tensor]


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` under a linear head."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, 10]``."""
        return self.head(self.encoder(x).mean(1))


def encoder(width: int, layers: int) -> tuple[nn.Module, Inputs]:
    """A row of vectors."""
    return Encoder(width, layers), {"x": torch.randn(BATCHES[-1], TOKENS, width)}


def bert(width: int, layers: int) -> tuple[nn.Module, Inputs]:
    """Words, all of them read."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": HEADS}
    config = BertConfig(vocab_size=WORDS, intermediate_size=4 * width, **sizes)
    return BertForSequenceClassification(config), {**_words(), "attention_mask": torch.ones(BATCHES[-1], TOKENS).long()}


def gpt2(width: int, layers: int) -> tuple[nn.Module, Inputs]:
    """Words, with logits for the next one of each."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(
        vocab_size=WORDS, n_embd=width, n_layer=layers, n_head=HEADS, n_positions=TOKENS, use_cache=False, **ends
    )
    return GPT2LMHeadModel(config), _words()


def vit(width: int, layers: int) -> tuple[nn.Module, Inputs]:
    """An image of 11 x 11 patches, and a token for the class."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": HEADS}
    config = ViTConfig(intermediate_size=4 * width, image_size=88, patch_size=8, **sizes)
    return ViTForImageClassification(config), {"pixel_values": torch.randn(BATCHES[-1], 3, 88, 88)}


def _words() -> Inputs:
    return {"input_ids": torch.randint(0, WORDS, (BATCHES[-1], TOKENS))}


NETWORKS: dict[str, Callable[[int, int], tuple[nn.Module, Inputs]]] = {
    "bert": bert,
    "gpt2": gpt2,
    "vit": vit,
    "encoder": encoder,
}


def measure(width: int = 256, layers: int = 2, seconds: float = 4.0) -> dict[str, Any]:
    """Return shares and speed-ups of each network; ``None`` where transformers would be needed and is not there."""
    has_transformers = importlib.util.find_spec("transformers") is not None
    found: dict[str, Any] = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        figures = _measure(*make(width, layers), seconds) if has_transformers or name == "encoder" else {"share": None}
        found |= {f"{name}_{key}": value for key, value in figures.items()}
    return found


def _measure(network: nn.Module, inputs: Inputs, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder, f"{kind}.onnx") for kind in ("float", "int8")}
        quantized = calibrate(network.eval(), [inputs, inputs])
        # GPT-2 adds numbers in its activation, by hand; what has learned nothing answers by chance.
        written = quantized.export(paths["int8"], fallbacks=["Add"], min_agreement=0.0, max_error=math.inf)
        export_onnx(network, (), paths["float"], kwargs=inputs)
        times = time_models(paths, [tensor.numpy() for tensor in inputs.values()], BATCHES, seconds=seconds)
        sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    speedups = {f"speedup_b{batch}": times["float"][batch].cpu_ms / times["int8"][batch].cpu_ms for batch in BATCHES}
    latencies = {f"ms_b{batch}": times["int8"][batch].cpu_ms for batch in BATCHES}
    return {"share": written.integer_share, **speedups, **latencies, "bytes_ratio": sizes["int8"] / sizes["float"]}


def main() -> None:
    """Measure, and print the figures."""
    parser = parser_for(__doc__)
    parser.add_argument("--width", type=int, default=256, help="of a token")
    parser.add_argument("--layers", type=int, default=2, help="of each network")
    parser.add_argument("--seconds", type=float, default=4.0, help="to spend on each batch size")
    options = parser.parse_args()
    quiet()
    figures = measure(options.width, options.layers, options.seconds)
    show_figures(f"Transformers in int8: {options.layers} layers of {options.width}, {TOKENS} tokens", figures)
    print(json.dumps({"benchmark": "quantization_transformers", "width": options.width, **figures}))


if __name__ == "__main__":
    main()
