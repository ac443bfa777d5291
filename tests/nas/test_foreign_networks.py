"""Spaces by configuration alone, on networks of packages that know nothing of this one."""

import re

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf

from lightning_optim.errors import LightningOptimError
from nas_laws import check_paths

pytestmark = pytest.mark.slow


class Wrapper(LightningModule):
    """What such a module looks like in tutorials."""

    def __init__(self, model, example):
        super().__init__()
        self.model, self.example_input_array = model, example

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


def convert(module, text, example=None):
    """Build the callback that a configuration describes, and convert a module with it."""
    node = OmegaConf.create(f"_target_: lightning_optim.NASSupernet\nspace:\n{text}")
    return instantiate(node, example=example, _convert_="all").convert(module)


def sizes(supernet):
    """Number of options of each kind of decision."""
    found = {}
    for decision in supernet.decisions:
        found.setdefault(decision.name.rpartition(":")[2], []).append(len(decision.options))
    return found


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, num_labels=4, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return Wrapper(transformers.ViTForImageClassification(config), torch.randn(2, 3, 16, 16))


VIT = """
  depth:
    _target_: lightning_optim.nas.ElasticDepth
    targets: {_target_: lightning_optim.Targets, include: [model.vit.layers]}
  heads:
    _target_: lightning_optim.nas.ElasticHeads
    targets: {_target_: lightning_optim.Targets, include: ["*.attention"]}
    heads: [1, 2]
  expansion:
    _target_: lightning_optim.nas.ElasticExpansion
    targets: {_target_: lightning_optim.Targets, include: ["*.mlp"]}
    ratios: [1]
  embedding:
    _target_: lightning_optim.nas.ElasticEmbedding
    targets: {_target_: lightning_optim.Targets, include: ["*.projection"]}
    fractions: [0.5, 1.0]
  bits:
    _target_: lightning_optim.nas.LayerBits
    targets: {_target_: lightning_optim.Targets, include: ["*.fc2"]}
  skip:
    _target_: lightning_optim.nas.OperationChoice
    targets: {_target_: lightning_optim.Targets, include: [model.vit.layers.1.mlp]}
    candidates: {skip: {_target_: torch.nn.Identity}}
"""


def test_a_vision_transformer_of_transformers():
    module = vit()
    supernet = convert(module, VIT)
    assert sizes(supernet) == {
        "depth": [3], "operation": [2], "bits": [3] * 3, "heads": [3] * 3, "expansion": [2] * 3, "embedding": [2],
    }  # fmt: skip
    # A layer has 3 heads, 2 expansions, 3 bits: 18; the second has them or is skipped but for its heads: 18 + 3.
    assert supernet.space.num_candidates == 2 * (18 + 18 * 21 + 18 * 21 * 18)
    assert len(str(supernet.describe()).splitlines()) == 2 + len(supernet.decisions)
    check_paths(supernet, (module.example_input_array,), num=3)
    subnet = supernet.extract(dict.fromkeys(supernet.default, 0)).model.vit
    assert len(subnet.layers) == 1
    assert subnet.layers[0].attention.num_attention_heads == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ElasticResolution, sizes: [8]", r"does not run with 'model:resolution' at '8': Input image size"),
        ("ElasticKernel, sizes: [2], targets: {TARGETS, include: ['*']}", "'model.vit.embeddings.*projection' pads"),
        ("ElasticWidth, targets: {TARGETS, include: ['*.classifier']}", "the channels of 'model.classifier' cannot"),
        ("ElasticDepth, targets: {TARGETS, include: [model.vit.layer]}", "did you mean"),
    ],
)  # fmt: skip
def test_what_a_vision_transformer_cannot_follow_is_refused_by_name(entry, message):
    text = entry.replace("TARGETS", "_target_: lightning_optim.Targets")
    with pytest.raises(LightningOptimError, match=message):
        convert(vit(), f"  entry: {{_target_: lightning_optim.nas.{text}}}")


def efficientnet():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    network = package.EfficientNet.from_name("efficientnet-lite0", num_classes=4, image_size=64)
    return Wrapper(network, torch.randn(2, 3, 64, 64))


LITE = """
  depth:
    _target_: lightning_optim.nas.ElasticDepth
    targets: {_target_: lightning_optim.Targets, include: ["model._blocks.[67]"]}
    level: block
    depths: [0, 1]
  kernel:
    _target_: lightning_optim.nas.ElasticKernel
    targets: {_target_: lightning_optim.Targets, include: ["*._blocks.[34].*"]}
  expansion:
    _target_: lightning_optim.nas.ElasticExpansion
    targets: {_target_: lightning_optim.Targets, include: ["*._blocks.[37]"]}
    ratios: [3]
  resolution: {_target_: lightning_optim.nas.ElasticResolution, sizes: [48]}
  head:
    _target_: lightning_optim.nas.ElasticWidth
    targets: {_target_: lightning_optim.Targets, include: ["*._conv_head"]}
"""


def test_efficientnet_lite():
    module = efficientnet()
    supernet = convert(module, LITE)
    assert sizes(supernet) == {"resolution": [2], "depth": [3], "kernel": [2, 2], "expansion": [2, 2], "width": [4]}
    # The expansion of the seventh block counts only where both blocks run.
    assert supernet.space.num_candidates == 2 * 2 * 2 * 2 * 4 * (1 + 1 + 2)
    check_paths(supernet, (module.example_input_array,), num=1)


def test_what_efficientnet_lite_cannot_skip_is_refused_by_name():
    entry = """
  depth:
    _target_: lightning_optim.nas.ElasticDepth
    targets: {_target_: lightning_optim.Targets, include: [model._blocks]}
"""
    message = re.escape("'model._blocks.1' cannot be skipped: it returns ['[2, 24, 16, 16] float32']")
    with pytest.raises(LightningOptimError, match=message):
        convert(efficientnet(), entry)


def tft():
    pandas, package = pytest.importorskip("pandas"), pytest.importorskip("pytorch_forecasting")
    waves = torch.arange(48.0).div(3.0).sin()
    table = pandas.DataFrame({"series": "a", "day": range(48), "value": waves.numpy()})
    data = package.TimeSeriesDataSet(
        table, time_idx="day", target="value", group_ids=["series"], max_encoder_length=12, max_prediction_length=4,
        time_varying_unknown_reals=["value"], add_relative_time_idx=True,
    )  # fmt: skip
    torch.manual_seed(0)
    settings = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4}
    module = package.TemporalFusionTransformer.from_dataset(data, **settings)
    batch, _ = next(iter(data.to_dataloader(train=False, batch_size=2)))
    return module, dict(batch)


TFT = """
  expansion:
    _target_: lightning_optim.nas.ElasticExpansion
    targets: {_target_: lightning_optim.Targets, include: [pos_wise_ff]}
    ratios: [0.5]
  bits:
    _target_: lightning_optim.nas.LayerBits
    targets: {_target_: lightning_optim.Targets, include: [pos_wise_ff.fc1]}
  depth:
    _target_: lightning_optim.nas.ElasticDepth
    targets: {_target_: lightning_optim.Targets, include: [pos_wise_ff]}
    level: block
    depths: [0]
  skip:
    _target_: lightning_optim.nas.OperationChoice
    targets: {_target_: lightning_optim.Targets, include: [static_context_enrichment]}
    candidates: {skip: {_target_: torch.nn.Identity}}
"""


def test_the_temporal_fusion_transformer_which_cannot_be_captured_as_a_whole():
    module, batch = tft()
    supernet = convert(module, TFT, example=[batch])
    assert sizes(supernet) == {"operation": [2], "depth": [2], "bits": [3], "expansion": [2, 2]}
    # Skipped, or with three bits and two hidden layers of two widths.
    assert supernet.space.num_candidates == 2 * (1 + 3 * 2 * 2)
    check_paths(supernet, (batch,), num=1)


def test_what_the_temporal_fusion_transformer_cannot_follow_is_refused_by_name():
    heads = """
  heads:
    _target_: lightning_optim.nas.ElasticHeads
    targets: {_target_: lightning_optim.Targets, include: [multihead_attn]}
"""
    module, batch = tft()
    with pytest.raises(LightningOptimError, match="'multihead_attn' matches no module with attention heads inside"):
        convert(module, heads, example=[batch])
