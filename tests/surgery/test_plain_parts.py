import argparse
import enum
import functools
import pathlib
from dataclasses import dataclass

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.plain_parts import read_plain_parts
from lightning_optim.surgery.weights import read_plain, weights_in
from support import same


@dataclass
class Settings:
    width: int


class Kind(enum.Enum):
    SMALL = "small"


class Loud:
    def __reduce__(self):
        return print, ("this code ran",)


HYPERPARAMETERS = {
    "a namespace": argparse.Namespace(width=32),
    "a configuration": OmegaConf.create({"width": 32, "layers": [1, {"deep": "${width}"}]}),
    "a partial function": functools.partial(torch.optim.Adam, lr=0.1),
    "a data class": Settings(3),
    "an enumeration": Kind.SMALL,
    "a path": pathlib.Path("data"),
    "a number of numpy": numpy.float64(0.5),
    "a module": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    "a function": nn.functional.relu,
    "a class": nn.ReLU,
    "code": Loud(),
}
WEIGHTS = {"net.weight": torch.arange(6.0).view(2, 3)}


def write(folder, **entries):
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": WEIGHTS, **entries}, folder / "saved.ckpt")
    return folder / "saved.ckpt"


@pytest.mark.parametrize("value", HYPERPARAMETERS.values(), ids=HYPERPARAMETERS.keys())
def test_hyperparameters_of_any_kind_are_passed_over_and_no_code_runs(value, tmp_path, capsys):
    path = write(tmp_path, epoch=3, hyper_parameters={"args": value, "other": [value]}, hparams_type=Settings)
    found = read_plain(path)
    assert same(weights_in(found, path), WEIGHTS)
    assert found["epoch"] == 3
    assert "hyper_parameters" not in found
    assert "ran" not in capsys.readouterr().out


def test_states_of_callbacks_are_read_one_by_one(tmp_path):
    ours = {"cut": {"weight": [[0, torch.tensor([1]), 2]]}}
    path = write(tmp_path, callbacks={"Pruning": ours, "Other": {"held": Settings(1)}})
    assert same(read_plain(path)["callbacks"], {"Pruning": ours})


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": Loud()},
        {"pytorch-lightning_version": "2", "state_dict": Loud()},
        {"pytorch-lightning_version": "2", "state_dict": {"a": Loud()}},
        {"pytorch-lightning_version": "2", "other": Loud()},
        {"weight": torch.ones(1), "other": Loud()},
        Loud(),
    ],
)
def test_weights_that_are_not_plain_are_refused_as_before(content, tmp_path, capsys):
    torch.save(content, tmp_path / "saved.ckpt")
    with pytest.raises((ValueError, KeyError)):
        read_plain_parts(tmp_path / "saved.ckpt")
    with pytest.raises(ArtefactError, match="cannot be read as plain weights"):
        read_plain(tmp_path / "saved.ckpt")
    assert "ran" not in capsys.readouterr().out
