import pytest
import torch
from torch import nn

from lightning_optim.distillation import Place, Side
from lightning_optim.distillation.place import find_places, pair_places
from lightning_optim.errors import TapError, TargetError
from lightning_optim.surgery.tap import ModuleCall


@pytest.fixture
def root():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(11)))
    return nn.ModuleDict({"net": nn.ModuleDict({"blocks": blocks, "head": nn.Linear(2, 1)})})


@pytest.mark.parametrize("text", ["a", "a.b:input", "a:output"])
def test_a_place_is_read_and_written_alike(text):
    assert Place.parse(str(Place.parse(text))) == Place.parse(text)


@pytest.mark.parametrize("text", ["", ":input", "a:inputs", "a:"])
def test_no_place_is_refused_and_names_what_there_is(text):
    if text == "a:":
        assert Place.parse(text) == Place("a")
        return
    with pytest.raises(ValueError, match="path:input"):
        Place.parse(text)


def test_a_star_stands_within_one_part_and_keeps_the_order_of_the_network(root):
    assert [place.path for place in find_places(root, ["net.blocks.*"], "student")] == [
        f"net.blocks.{number}" for number in range(11)
    ]
    assert [str(place) for place in find_places(root, ["net.blocks.1?.0:input", "net.head"], "student")] == [
        "net.blocks.10.0:input",
        "net.head",
    ]


def test_the_teachers_places_are_the_students_without_the_networks_name(root):
    pairs = pair_places(Side(root, "net"), Side(root["net"]), ["net.blocks.*:input"], None)
    assert all(mine.path == f"net.{theirs.path}" and mine.part == theirs.part == "input" for mine, theirs in pairs)
    assert len(pairs) == 11


def test_a_glob_that_names_nothing_says_what_stands_at_its_depth(root):
    with pytest.raises(TargetError, match=r"teacher: no module is named like 'blocks.\*'.*there are net"):
        find_places(root, ["blocks.*"], "teacher")


def test_the_first_argument_is_the_input_and_one_tensor_in_a_container_is_the_output():
    first, second = torch.zeros(1), torch.ones(1)
    assert Place("a", "input").read(ModuleCall((first, second), {}, None)) is first
    assert Place("a", "input").read(ModuleCall((), {"x": first, "flag": True}, None)) is first
    assert Place("a").read(ModuleCall((), {}, {"hidden": second, "none": None})) is second


@pytest.mark.parametrize("part", ["input", "output"])
def test_several_tensors_are_refused(part):
    two = {"x": torch.zeros(1), "y": torch.zeros(1)}
    with pytest.raises(TapError, match=r"2 of them .*look at a module inside it"):
        Place("a", part).read(ModuleCall((), two, two))
