"""Types of settings, where an object is built."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, Literal, final

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant
from lightning_optim.checked import checked
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Cubic, Linear


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    size: float = 1.0
    count: int | None = None
    kind: Literal["a", "b", "c"] = "a"
    flag: bool = False
    values: Sequence[float] = ()
    make: Mapping[str, nn.Module | Callable[[], nn.Module]] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "values",
    [
        {"size": 1, "count": np.int64(3), "flag": True, "anything": object},
        {"size": np.float32(0.5), "count": None, "values": (1, 2.5)},
        {"values": OmegaConf.create([1, 2]), "make": {"a": nn.Linear, "b": nn.Identity(), "c": nn.ReLU}},
    ],
)
def test_what_fits_is_taken_as_it_is(values):
    setting = Setting(**values)
    assert all(getattr(setting, key) is value for key, value in values.items())


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"size": "high"}, TypeError, r"Setting: size must be a number, got the string 'high'"),
        ({"size": True}, TypeError, r"size must be a number, got bool True"),
        ({"size": torch.tensor(1.0)}, TypeError, r"size must be a number, got Tensor"),
        ({"count": 2.0}, TypeError, r"count must be an integer or None, got float 2\.0"),
        ({"kind": "d"}, ValueError, r"kind must be 'a', 'b' or 'c', got 'd'"),
        ({"kind": 1}, TypeError, r"kind must be 'a', 'b' or 'c', got int 1"),
        ({"flag": "yes"}, TypeError, r"flag must be True or False, got the string 'yes'"),
        ({"values": "12"}, TypeError, r"values must be a list, each entry a number, got the string '12'"),
        ({"values": [1, "2"]}, TypeError, r"values must be a list, each entry a number, got list \[1, '2'\]"),
        ({"make": {"a": nn.ReLU, "b": 3}}, TypeError, r"make\['b'\] must be a Module or a callable, got int 3"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_was_needed(values, error, message):
    with pytest.raises(error, match=message):
        Setting(**values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PruningScheduler(schedule=Linear(end=0.5), structure="channel"),
            r"structure must be a Structure or None, got the string 'channel'; there are Block, Channel, Head, Layer, "
            r"Neuron, SemiStructured, Weight: did you mean Channel\(\)\?",
        ),
        (lambda: PruningScheduler(schedule="cubik"), r"there are Constant, .*: did you mean Cubic\(end=\.\.\.\)\?"),
        (lambda: PruningScheduler(schedule=Cubic), r"got the class Cubic; give an object, Cubic\(end=\.\.\.\)"),
        (lambda: PruningScheduler(schedule=0.5), r"schedule must be a Schedule, got float 0\.5; there are Constant"),
        (
            lambda: DistillationTeacher(teacher=nn.Linear(1, 1), losses={"soft": OmegaConf.create({"T": 2})}),
            r"losses\['soft'\] must be a Loss, got DictConfig .*needs its _target_",
        ),
        (
            lambda: QATFakeQuant().calibrate(nn.Linear(1, 1), [], methods=["gptq"]),
            r"methods must be a list, each entry a PostTraining, got list \['gptq'\]; there are AdaRound, .*GPTQ",
        ),
        (lambda: QATFakeQuant(observer="min_max"), r"there are Entropy, .*: did you mean MinMax\(\)\?"),
    ],
)
def test_a_name_where_an_object_is_wanted_lists_what_there_is(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_nothing_is_taken_for_the_default_but_none():
    with pytest.raises(TypeError, match="criterion must be a Criterion or None, got the string ''"):
        PruningScheduler(schedule=Linear(end=0.5), criterion="")
    assert PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), criterion=None).criterion is not None


def test_a_setting_is_one_class_and_frozen_for_names_that_it_does_not_have_too():
    class Family:
        pass

    @final
    @checked
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Member(Family):
        size: float = 1.0

    gc.collect()
    assert Family.__subclasses__() == [Member]
    with pytest.raises(FrozenInstanceError, match="colour"):
        Member().colour = "red"
