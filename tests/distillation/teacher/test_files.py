"""Teachers from files: checkpoints and safetensors obey the same laws."""

import os
import pickle
import subprocess
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import nn

from lightning_optim.distillation import Checkpoint, Safetensors
from lightning_optim.errors import ArtefactError
from support import quiet


def net(width=3):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def named(module, prefix):
    return {prefix + name: tensor.clone() for name, tensor in module.state_dict().items()}


def save_lightning(weights, path):
    torch.save({"state_dict": weights, "epoch": 3, "hyper_parameters": {"width": 3}}, path)


SAVERS = {
    "lightning": (Checkpoint, save_lightning),
    "state_dict": (Checkpoint, torch.save),
    "safetensors": (Safetensors, save_file),
}


@pytest.fixture(params=SAVERS)
def kind(request):
    return SAVERS[request.param]


@pytest.mark.parametrize("prefix", ["", "net.", "model.net.", "net._orig_mod.", "module.net."])
def test_weights_are_found_under_any_prefix(kind, prefix, tmp_path):
    source, save = kind
    trained = net()
    others = {"metric.total": torch.zeros(1)} if prefix else {}
    save(named(trained, prefix) | others, tmp_path / "t")
    student = net()
    loaded = source(path=tmp_path / "t").load(lambda: student)
    assert loaded is not student
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])


def test_architecture_of_its_own_is_filled(kind, tmp_path):
    source, save = kind
    trained, architecture = net(8), net(8)
    save(named(trained, "net."), tmp_path / "t")
    loaded = source(path=str(tmp_path / "t"), architecture=architecture).load(lambda: pytest.fail("not needed"))
    assert loaded is architecture
    assert torch.equal(loaded[0].weight, trained[0].weight)


def test_prefix_chooses_between_two_networks(kind, tmp_path):
    source, save = kind
    first, second = net(), net()
    save(named(first, "net.") | named(second, "ema."), tmp_path / "t")
    with pytest.raises(ArtefactError, match=r"more than once, under \['ema.', 'net.'\]"):
        source(path=tmp_path / "t").load(net)
    assert torch.equal(source(path=tmp_path / "t", prefix="ema.").load(net)[0].weight, second[0].weight)


def test_missing_file_is_one_line(kind, tmp_path):
    assert_one_line(kind[0](path=tmp_path / "absent"), "absent does not exist")
    assert_one_line(kind[0](path=tmp_path), "is a folder")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_one_line(kind, share, tmp_path):
    source, save = kind
    save(named(net(), "net."), tmp_path / "t")
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(content[: int(len(content) * share)])
    assert_one_line(source(path=tmp_path / "t"), "truncated or no")


def test_truncated_file_of_the_old_format_is_one_line(tmp_path):
    torch.save(named(net(), ""), tmp_path / "t", _use_new_zipfile_serialization=False)
    content = (tmp_path / "t").read_bytes()
    for end in range(1, len(content), 97):
        (tmp_path / "t").write_bytes(content[:end])
        assert_one_line(Checkpoint(path=tmp_path / "t"), "truncated or no checkpoint|breaks off there")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("save", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_pickle_with_code_is_refused_and_not_run(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": named(net(), ""), "extra": Bomb()}, tmp_path / "t")
    assert_one_line(
        Checkpoint(path=tmp_path / "t"),
        "holds (a pickle|the pickled object 'getattr') .* could run code, and was not loaded",
    )
    assert not Path("exploded").exists()


class Remembers(nn.Module):
    """A network whose class notes whenever something of it runs."""

    ran: ClassVar[list[str]] = []

    def __init__(self):
        super().__init__()
        self.body = net()
        self.ran.append("built")

    def __setstate__(self, state):
        self.ran.append("unpickled")
        super().__setstate__(state)

    def forward(self, x):
        return self.body(x)


class Template(LightningModule):
    """As the Lightning-Hydra template has it: the network and a partial optimizer are hyperparameters."""

    def __init__(self, net, optimizer, compiled=False):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = torch.compile(net) if compiled else net


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_are_read_of_a_checkpoint_that_pickles_its_network(compiled, tmp_path):
    module = Template(Remembers(), partial(torch.optim.Adam, lr=0.1), compiled)
    trainer = quiet(max_epochs=1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "t.ckpt")
    assert b"Remembers" in (tmp_path / "t.ckpt").read_bytes()
    student = Remembers()
    Remembers.ran.clear()
    loaded = Checkpoint(path=tmp_path / "t.ckpt", architecture=student).load(lambda: None)
    assert Remembers.ran == []
    assert torch.equal(loaded.body[0].weight, module.state_dict()[f"net.{'_orig_mod.' * compiled}body.0.weight"])


class Calls:
    """Pickled as a call of whatever function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


CODE = {
    "a command": lambda: Calls(os.system, ("touch exploded",)),
    "a process": lambda: Calls(subprocess.Popen, (["touch", "exploded"],)),
    "a file": lambda: Calls(open, ("exploded", "w")),
    "an expression": lambda: Calls(eval, ("open('exploded', 'w')",)),
    "an entry of a list": lambda: Calls(list, (), None, iter([Calls(open, ("exploded", "w"))])),
    "a state": lambda: Calls(Remembers, (), {"a": Calls(open, ("exploded", "w"))}),
}


@pytest.mark.parametrize("code", CODE.values(), ids=CODE.keys())
@pytest.mark.parametrize("entry", ["hyper_parameters", "callbacks", "state_dict", "optimizer_states", "other"])
def test_code_anywhere_in_a_checkpoint_does_not_run(entry, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = named(net(), "net.")
    content = {"pytorch-lightning_version": "2.6.6", "state_dict": weights, "epoch": 1}
    content[entry] = {**weights, "net.code": code()} if entry == "state_dict" else {"held": code()}
    torch.save(content, "t.ckpt")
    Remembers.ran.clear()
    said, loaded = "", None
    try:
        loaded = Checkpoint(path="t.ckpt").load(net)
    except ArtefactError as error:
        said = str(error)
    if loaded is None:
        assert "could run code, and was not loaded; save the model's state_dict alone or as safetensors" in said
    else:
        assert entry != "state_dict"
        assert torch.equal(loaded[0].weight, weights["net.0.weight"])
    assert not Path("exploded").exists()
    assert Remembers.ran == []


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (named(net(5), "net."), r"another shape \(first '0.weight': \[5, 4\] in the file, \[3, 4\] in the network\)"),
        (named(nn.Sequential(nn.Linear(4, 3)), "net."), r"below 'net.': 7 of 9 .* not in it \(first '1.bias'\)"),
        (named(nn.Sequential(*net(), nn.Linear(2, 2)), "net."), r"2 of its weights have no place \(first '3.bias'\)"),
        ({"stem": torch.zeros(1)}, r"9 of 9 weights are not in it \(first '0.bias'\) and 1 of its"),
    ],
)
def test_weights_of_another_model_name_what_differs(kind, weights, message, tmp_path):
    source, save = kind
    save(weights, tmp_path / "t")
    assert_one_line(source(path=tmp_path / "t"), message)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_file_without_weights_is_one_line(content, tmp_path):
    torch.save(content, tmp_path / "t")
    assert_one_line(Checkpoint(path=tmp_path / "t"), "neither a 'state_dict' nor weights")


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be"):
        Checkpoint(path="t", precision="int8")


def assert_one_line(source, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        source.load(net)
    assert "\n" not in str(caught.value)
