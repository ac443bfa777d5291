"""Ready-made spaces: each one option of the command line, each path what is extracted, figures as told."""

import random
import re
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import lightning_optim.conf
from lightning_optim import NASSupernet
from lightning_optim.cli.build import build
from lightning_optim.cost import MACs
from lightning_optim.demo import Digits
from lightning_optim.errors import TargetError
from lightning_optim.nas import PCDARTS, DARTSLike, MobileNetLike, ResNetLike, TransformerLike
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet
from support import quiet

CONF = Path(lightning_optim.conf.__path__[0]) / "lightning_optim"
SMALL = {
    "darts_like": ["channels=4", "num_cells=2", "num_nodes=2"],
    "mobilenet_like": ["widths=[8,12]", "depths=2", "stem_width=8"],
    "resnet_like": ["widths=[8,16]", "depths=2"],
    "transformer_like": ["dim=16", "depth=4", "num_heads=2"],
}
CLASSES = {"darts_like": DARTSLike, "mobilenet_like": MobileNetLike, "resnet_like": ResNetLike}
CLASSES |= {"transformer_like": TransformerLike}


def made(name, *words, size=16):
    """The module of the main job and its space, by one word of the command line and what makes it small."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", [f"model={name}", *(f"model.network.{word}" for word in words)])
    torch.manual_seed(0)
    module = build(config.model)
    space = build(config.recipe.stages.search.callbacks.nas_supernet.space)
    return Site(root=module, network="net", args=(torch.zeros(2, 1, size, size),)), space


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    site, space = made(request.param, *SMALL[request.param])
    started = time.process_time()
    supernet = build_supernet(site, space)
    return supernet, time.process_time() - started


def test_a_small_one_is_built_within_two_seconds(small):
    assert small[1] < 2.0


def test_each_option_of_each_decision_runs_and_is_extracted_bit_for_bit(small):
    """Of at most 10 of them, among the other decisions at random."""
    supernet, x, draw = small[0], torch.randn(3, 1, 16, 16), random.Random(0)
    pairs = [(decision, option) for decision in supernet.decisions for option in range(len(decision.options))]
    for decision, option in draw.sample(pairs, min(10, len(pairs))):
        architecture = supernet.space.sample(draw) | {decision.name: option}
        architecture |= {each.decision: each.options[-1] for each in decision.conditions}  # so that it is active
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert torch.equal(supernet.site.root.eval()(x), subnet.eval()(x)), (decision.name, option)


def test_own_keys_stay(small):
    supernet = small[0]
    name = next(name for name, kind in CLASSES.items() if isinstance(supernet.site.root.net, kind))
    plain = made(name, *SMALL[name])[0].root.state_dict()
    assert [key for key in supernet.site.root.state_dict() if "._candidates." not in key] == list(plain)
    supernet.site.root.load_state_dict(plain, strict=True)


@pytest.mark.parametrize(
    "name",
    [
        "transformer_like",
        pytest.param("mobilenet_like", marks=pytest.mark.slow),
        pytest.param("resnet_like", marks=pytest.mark.slow),
        pytest.param("darts_like", marks=pytest.mark.slow),
    ],
)
def test_figures_are_those_of_the_docstring(name):
    told = re.search(r"there are ([\d,]+) architectures of ([\d,]+) to ([\d,]+) MACs", CLASSES[name].__doc__)
    num_architectures, least, most = (int(each.replace(",", "")) for each in told.groups())
    supernet = build_supernet(*made(name))
    # No option of the first is cheaper than zeros; in the others each decision makes the network smaller by itself.
    low = {each.name: each.options.index("none") if name == "darts_like" else 0 for each in supernet.decisions}
    assert supernet.space.num_candidates == num_architectures
    assert supernet.measure(low, MACs()) == least
    assert supernet.measure(supernet.default, MACs()) == most


@pytest.mark.parametrize("name", SMALL)
def test_settings_make_it_fit_larger_images_and_other_channels(name):
    words = {"transformer_like": ["length=49", "in_channels=3"]}.get(name, ["stem_stride=2", "in_channels=3"])
    network = made(name, *SMALL[name], *words)[0].root.net
    assert network(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


def test_a_space_that_fits_no_part_of_a_network_is_refused():
    site, _ = made("transformer_like", *SMALL["transformer_like"])
    with pytest.raises(TargetError, match=r"'\*stages\.\?' matches no module"):
        build_supernet(site, made("mobilenet_like")[1])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (MobileNetLike, {"kernel": 4}, "kernel must be odd"),
        (MobileNetLike, {"depths": [1, 2]}, "one depth for each width"),
        (ResNetLike, {"kernel": 2}, "kernel must be odd"),
        (ResNetLike, {"widths": [8, 0]}, "at least 1"),
        (TransformerLike, {"dim": 10, "num_heads": 4}, "multiple of num_heads"),
        (TransformerLike, {"vocabulary": 10}, "patch for images, or vocabulary for tokens"),
        (DARTSLike, {"num_nodes": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_cells_are_learned_on_the_data_of_the_main_job(tmp_path):
    site, space = made("darts_like", *SMALL["darts_like"])
    search = NASSupernet(space=space, sampler=PCDARTS(), example=site.args[0], search_at="call")
    trainer = quiet(search, max_steps=3, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(site.root, Digits(batch_size=16))
    values = search.state_dict()["training"]["learned"]["values"]
    assert len(values) == 10
    assert all(value.abs().max() > 0.01 for value in values)  # they began at a deviation of 0.001
