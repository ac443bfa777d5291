"""Weights from files: what is read, under which names it fits, and what an error says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.weights import (
    check_shapes,
    fit_names,
    load_fitted,
    load_state,
    read_plain,
    weights_in,
)

FILE = Path("file")
SAVERS = {"net.ckpt": torch.save, "net.pt": torch.save, "net.safetensors": save_file}


def net(width=3):
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))


def around(network):
    whole = nn.Module()
    whole.net = network
    return whole


def fit(weights, module, **settings):
    return fit_names(weights, module, FILE, advice="do this", **settings)


@pytest.mark.parametrize("name", SAVERS)
def test_the_suffix_says_how_a_file_is_read(name, tmp_path):
    weights = net().state_dict()
    SAVERS[name](dict(weights), tmp_path / name)
    found = weights_in(read_plain(tmp_path / name), tmp_path / name)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("file_format", ["checkpoint", "safetensors"])
def test_a_format_that_is_said_goes_before_the_suffix(file_format, tmp_path):
    save = {"checkpoint": torch.save, "safetensors": save_file}[file_format]
    save({"a": torch.ones(2)}, tmp_path / "weights")
    assert torch.equal(read_plain(tmp_path / "weights", file_format)["a"], torch.ones(2))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    assert read_plain("~/weights.pt").keys() == {"a"}


@pytest.mark.parametrize("name", SAVERS)
@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04 and then nothing"])
def test_a_damaged_file_is_one_line_with_its_size_and_advice(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"truncated or no .* \({len(content)} bytes\); call the baker") as caught:
        read_plain(tmp_path / name, advice="call the baker")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_what_could_run_code_is_refused_with_the_same_advice(tmp_path):
    torch.save({"state_dict": {}, "extra": FILE}, tmp_path / "t")
    with pytest.raises(ArtefactError, match=r"holds the pickled object 'pathlib.* could run code.* or call the baker"):
        read_plain(tmp_path / "t", advice="call the baker")


def test_only_tensors_are_weights_and_names_are_plain():
    content = {"state_dict": {"net._orig_mod.weight": torch.ones(1), "net.extra": "text"}, "epoch": 1}
    assert weights_in(content, FILE) == {"net.weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("saved", "module"),
    [
        (net(), net()),
        (around(net()), net()),
        (net(), around(net())),
        (around(around(net())), around(net())),
    ],
)
def test_weights_fit_a_part_of_what_was_saved_and_what_stands_around_it(saved, module):
    found = fit(saved.state_dict(), module)
    assert found.keys() == module.state_dict().keys()
    load_fitted(found, module)
    pairs = zip(saved.state_dict().values(), module.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_prefix_with_more_below_it_than_the_network_is_no_fit():
    weights = {"net.weight": 1, "net.bias": 2, "ema.weight": 3, "ema.bias": 4, "ema.step": 5}
    assert fit(weights, nn.Linear(1, 1)) == {"weight": 1, "bias": 2}
    with pytest.raises(ArtefactError, match=r"below 'ema.': 1 of its weights have no place \(first 'step'\); do this"):
        fit(weights, nn.Linear(1, 1), prefix="ema.")


def test_several_fits_are_refused():
    with pytest.raises(ArtefactError, match=r"more than once, under \['a.', 'b.'\]; do this"):
        fit({"a.weight": 1, "a.bias": 2, "b.weight": 3, "b.bias": 4}, nn.Linear(1, 1))


def test_a_module_without_weights_takes_none():
    with pytest.raises(ArtefactError, match="ReLU has no weights to take from file"):
        fit({"weight": 1}, nn.ReLU())


def test_names_that_differ_are_told_under_the_likeliest_prefix():
    with pytest.raises(ArtefactError, match=r"below 'net.': 2 of 4 weights are not in it \(first '1.bias'\); do this"):
        fit({"net.0.weight": 1, "net.0.bias": 2, "step": 3}, net())


def test_shapes_that_differ_are_told():
    with pytest.raises(ArtefactError, match=r"3 of 4 .* '0.weight': \[5, 4\] in the file, \[3, 4\] in .*; do this"):
        check_shapes(net(5).state_dict(), net(), FILE, advice="do this")


class Renamed(nn.Module):
    """A module whose own hook reads states of an older kind."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module, state, prefix, *_):
        state[prefix + "weight"] = state.pop(prefix + "kernel")


def test_a_state_goes_through_the_modules_own_hooks():
    module = Renamed()
    load_state({"kernel": torch.ones(2)}, module, FILE, advice="do this")
    assert torch.equal(module.weight, torch.ones(2))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (net(5).state_dict(), "3 of 4 weights have another shape"),
        (around(net()).state_dict(), r"4 of 4 weights are not in it \(first '0.bias'\) and 4 of its"),
    ],
)
def test_a_state_of_another_model_is_one_line(state, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        load_state(state, net(), FILE, advice="do this")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; do this")
