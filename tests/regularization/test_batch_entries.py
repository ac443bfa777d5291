"""What is input and what is label in a batch, and when that is not clear."""

from collections import namedtuple
from dataclasses import dataclass, field

import pytest
import torch

from lightning_optim.errors import SampleError
from lightning_optim.regularization.batch_entries import find_entries

X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
Pair = namedtuple("Pair", ["image", "kind"])


@dataclass
class Batch:
    views: list = field(default_factory=lambda: [X.clone(), X.clone()])
    kind: torch.Tensor = Y
    weights: torch.Tensor = field(default_factory=lambda: torch.ones(7))  # of the classes
    source: str = "camera"


@pytest.mark.parametrize(
    ("batch", "inputs", "labels"),
    [
        ((X, Y), ["0"], ["1"]),
        ({"image": X, "kind": Y}, ["image"], ["kind"]),
        (Pair(X, Y), ["image"], ["kind"]),
        (Batch(), ["views.0", "views.1"], ["kind"]),
        ([X, {"a": Y, "scale": torch.tensor(2.0)}, None], ["0"], ["1.a"]),
        ((X, Y, torch.zeros(9, dtype=torch.long)), ["0"], ["1"]),  # not one for each sample
        ((X, torch.zeros(4, 8, 8, dtype=torch.uint8)), ["0"], ["1"]),
    ],
)
def test_inputs_are_in_floating_point_and_the_label_is_of_integers(batch, inputs, labels):
    found = find_entries(batch, (), ())
    assert (sorted(found.inputs), sorted(found.labels), found.size) == (inputs, labels, 4)


def test_keys_name_what_is_what_and_a_container_stands_for_all_in_it():
    batch = {"x": [X, X.clone()], "y": {"a": Y, "b": Y.clone()}, "index": Y.clone(), "time": X[:, 0].clone()}
    found = find_entries(batch, ("x",), ("y",))
    assert sorted(found.inputs) == ["x.0", "x.1"]
    assert sorted(found.labels) == ["y.a", "y.b"]
    assert sorted(find_entries(batch, (), ("y.a",)).inputs) == ["time", "x.0", "x.1"]


@pytest.mark.parametrize(
    ("batch", "keys", "says"),
    [
        (
            (X, Y, Y.clone()),
            ((), ()),
            r"any of \['1', '2'\] may be the label; .*'2' \(int64 \[4\]\): name the labels in",
        ),
        (X, ((), ()), r"no tensor of integers .* the batch holds '' \(float32 \[4, 3\]\)"),
        ("text", ((), ()), "the batch holds no tensors"),
        ((X, Y), ((), ("kind",)), "label_keys names 'kind', but the batch holds '0'"),
        ((X, Y), (("2",), ()), "input_keys names '2'"),
        ((X, torch.tensor(3)), ((), ("1",)), r"\['1'\] must have one entry for each sample"),
        ((X, Y, Y[:2]), ((), ("1", "2")), r"\['1', '2'\] must have one entry for each sample"),
        ((X, Y), (("1",), ("1",)), "the input '1' must have 4 samples, .* and be none of them"),
        ((X[:3], Y), (("0",), ("1",)), "the input '0' must have 4 samples"),
        ((Y, Y.clone()), ((), ("1",)), "nothing to mix: no tensor in floating point has 4 samples"),
    ],
)
def test_what_is_not_clear_is_refused_by_name(batch, keys, says):
    with pytest.raises(SampleError, match=says):
        find_entries(batch, *keys)
