"""Models by name, with random weights and one batch of inputs: ``module:factory`` of any package."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model, its positional inputs, its keyword inputs."""

TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size", "n_embed"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 128),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    "head_dim": 16,
    "d_kv": 16,
    "rotary_dim": 8,
    "attention_types": [[["global", "local"], 1]],
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "image_size": 64,
    "patch_size": 8,
    "num_labels": 5,
    "pad_token_id": 0,
    "use_cache": False,
}
"""Two layers, four heads, width 64, in the many words that configurations have for them."""

HIERARCHY: dict[str, Any] = {
    "depths": [2, 2],
    **dict.fromkeys(("num_stages", "num_encoder_blocks"), 2),
    "num_heads": [2, 4],
    "hidden_sizes": [32, 64],
    "window_size": 4,
    "patch_size": 4,
    "embed_dim": 32,
}
"""What is said by stage in a pyramid."""

COUNTED = frozenset(
    {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "vocab_size"}
    | {"max_position_embeddings", "image_size", "num_labels", "pad_token_id", "use_cache"}
)
"""What can be made smaller without regard to anything else."""

_STAND_IN: list[torch.library.Library] = []


def build(name: str) -> Built:
    """Build a model with random weights, and one batch that it takes.

    Args:
        name: ``module:factory``. A factory of ``torchvision`` or ``timm`` takes images, a class of ``transformers``
            is built from a tiny configuration; any other returns a model, which takes an image of 3 x 224 x 224, or
            a tuple of model and positional inputs.
    """
    module_name, _, factory = name.partition(":")
    package = module_name.partition(".")[0]
    if package in ("torchvision", "timm", "transformers") and importlib.util.find_spec("torchvision"):
        _import_torchvision()
    torch.manual_seed(0)
    if package == "transformers":
        return _transformer(getattr(importlib.import_module(module_name), factory))
    module = importlib.import_module(module_name)
    built = getattr(module, factory)() if hasattr(module, factory) else module.create_model(factory)
    if isinstance(built, tuple):
        return built[0], tuple(built[1:]), {}
    size = tuple(getattr(built, "default_cfg", {}).get("input_size", (3, 224, 224)))
    return built, (torch.randn(1, *size),), {}


def twice(batch: Any) -> Any:
    """Repeat every tensor along its first axis: batch norm cannot train on one example."""
    return torch.utils._pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf, batch
    )


def _import_torchvision() -> None:
    """Import torchvision, even its CUDA build beside a CPU torch, which lacks the operators that it extends."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _STAND_IN.append(library)  # collected, it would take its operators along
        importlib.import_module("torchvision")


def _transformer(cls: Any) -> Built:
    """Build the first of ever larger configurations that runs."""
    failed: list[Exception] = []
    for settings in _configurations(cls):
        try:
            model = cls(cls.config_class(**settings)).eval()
            inputs = _inputs(model)
            with torch.no_grad():
                model(**inputs)
            return model, (), inputs
        except Exception as error:
            failed.append(error)
    raise failed[0]


def _configurations(cls: Any) -> Iterator[dict[str, Any]]:
    """Tiny in all that the configuration has words for; tiny in what it counts; all but as it comes."""
    known = cls.config_class().to_dict()
    stages = HIERARCHY if isinstance(known.get("depths"), list) else {}
    settings = {key: value for key, value in {**TINY, **stages}.items() if _fits(value, known.get(key, ...))}
    for aliased, own in getattr(cls.config_class, "attribute_map", {}).items():
        if aliased in TINY and own not in settings and not stages:
            settings[own] = TINY[aliased]
    yield settings
    yield {key: value for key, value in settings.items() if key in COUNTED}
    yield {key: value for key, value in settings.items() if key in ("use_cache", "pad_token_id")}


def _fits(value: Any, default: Any) -> bool:
    """Whether a configuration has the key, in the same form."""
    return default is not ... and isinstance(default, list | tuple) == isinstance(value, list | tuple)


def _inputs(model: Any) -> dict[str, Tensor]:
    main, config = model.main_input_name, model.config
    parameters: Mapping[str, Any] = inspect.signature(model.forward).parameters
    if main == "pixel_values" and "input_ids" not in parameters:
        frames = [config.num_frames] if "num_frames" in config else []
        return {main: torch.randn(1, *frames, 3, *_image_size(config))}
    if main == "input_values":
        is_spectrum = "num_mel_bins" in config
        return {main: torch.randn(1, config.max_length, config.num_mel_bins) if is_spectrum else torch.randn(1, 4000)}
    tokens = torch.randint(3, 99, (2, 12))
    inputs = {"input_ids": tokens}
    if main == "input_features":
        inputs = {main: torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)}
    if main == "pixel_values" or "pixel_values" in parameters:
        inputs["pixel_values"] = torch.randn(2, 3, *_image_size(getattr(config, "vision_config", config)))
    if "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = tokens[:, :7]
    return inputs


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 64)
    return (size, size) if isinstance(size, int) else tuple(size)
