from collections import OrderedDict, namedtuple

import pytest
import torch

from lightning_optim.surgery.synthetic import Filling, describe, fillings, synthesize
from support import same

CPU = torch.device("cpu")
Pair = namedtuple("Pair", "left right")


def remade(value, rows=2, **filling):
    return synthesize(describe(value, batch=4, rows=rows), Filling(**filling), CPU)


def test_nothing_of_a_tensor_but_its_shape_its_type_and_its_range_is_described():
    seen = torch.arange(12, dtype=torch.int16).view(4, 3) + 7
    assert describe(seen, batch=4, rows=2) == {
        "kind": "tensor",
        "shape": [2, 3],
        "value": "int16",
        "of": "integers",
        "low": 7,
        "high": 18,
        "is_with_network": True,
    }
    described = describe(torch.full((4, 2), 0.125), batch=4, rows=2)
    assert 0.125 not in described.values()


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.uint8, torch.int64, torch.bool],
)
def test_shape_and_type_are_kept_and_the_values_are_the_same_each_time(dtype):
    seen = torch.ones(4, 5, dtype=dtype)
    made = remade(seen)
    assert (made.shape, made.dtype) == ((2, 5), dtype)
    assert torch.equal(made, remade(seen))
    assert remade(seen, rows=4).shape == (4, 5)


def test_integers_stay_in_the_range_that_was_seen_of_all_rows():
    seen = torch.tensor([[5, 6], [7, 5], [3, 5], [9, 9]])
    assert set(remade(seen.repeat(1, 50)).unique().tolist()) == set(range(3, 10))
    assert remade(seen, integers="largest").tolist() == [[9, 9]] * 2
    assert remade(seen, integers="smallest").tolist() == [[3, 3]] * 2


def test_booleans_and_floats_can_be_filled_in_several_ways():
    mask = torch.ones(4, 30, dtype=torch.bool)
    assert remade(mask, booleans="true").all()
    assert not remade(mask, booleans="false").any()
    assert 0 < int(remade(mask).sum()) < 60
    unit = remade(torch.zeros(4, 30), floats="unit")
    assert unit.min() >= 0
    assert unit.max() < 1


def test_containers_and_primitives_come_back_as_they_were():
    value = ((1, 0.5, True, "mean", None), [torch.float16], {"a": (2,), 3: OrderedDict(b=4)}, torch.Size([4, 2]), CPU)
    made = remade(value)
    assert made == value
    assert [type(each) for each in made] == [type(each) for each in value]
    assert type(made[2][3]) is OrderedDict


def test_a_list_with_a_number_for_each_row_is_data_too():
    lengths = [9, 4, 2, 7]
    assert remade(lengths, integers="largest") == [9, 9]
    assert type(remade((0.5, 0.25, 0.0, 1.0))) is tuple
    assert remade([1, 2]) == [1, 2]  # of another length: a setting


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([Pair(1, 2)], r"call\[0\] is of type Pair"),
        ({"b": object()}, r"call\['b'\] is of type object"),
        ({Pair(1, 2): 1}, "is of type dict"),
        (["a", "b", "c", "d"], "holds a text for each row"),
        (torch.eye(3).to_sparse(), "is a tensor that is not dense"),
    ],
)
def test_what_cannot_be_made_again_is_named(value, problem):
    with pytest.raises(TypeError, match=problem):
        describe(value, batch=4, rows=2, name="call")


def test_the_description_can_be_loaded_without_running_code(tmp_path):
    value = (torch.ones(4, 2), {"n": [torch.tensor(3), None]}, "text")
    torch.save(describe(value, batch=4, rows=2), tmp_path / "seen.pt")
    found = torch.load(tmp_path / "seen.pt", weights_only=True)
    assert same(synthesize(found, Filling(), CPU), remade(value))


def test_only_fillings_that_differ_are_tried():
    assert len([*fillings(describe((1, "a"), batch=4, rows=2))]) == 1
    assert len([*fillings(describe((torch.ones(4), torch.ones(4).bool()), batch=4, rows=2))]) == 6
