"""A mixed batch leaves the batch as it is, and is made anew where a step has changed it in place."""

from functools import partial

import pytest
import torch

from lightning_optim.errors import SampleError
from lightning_optim.functional import mix_samples
from lightning_optim.regularization import Blend, LabelSmoothing
from lightning_optim.regularization.batch_entries import find_entries
from lightning_optim.regularization.mixed_batch import MixedBatch

ORDER = [2, 0, 1]


def make(weight=0.75, x=None, y=None):
    x = torch.tensor([[1.0], [2.0], [4.0]]) if x is None else x
    batch = {"x": x, "y": torch.tensor([0, 1, 2]) if y is None else y, "name": "batch"}
    blend = None if weight is None else Blend(weight, partial(mix_samples, weight=weight))
    return batch, MixedBatch(batch, find_entries(batch, ("x",), ("y",)), ORDER, blend)


def test_samples_and_labels_are_those_of_the_order():
    batch, mixed = make()
    own, other = mixed.with_own_labels(), mixed.with_partners_labels()
    expected = [0.75 * 1.0 + 0.25 * 4.0, 0.75 * 2.0 + 0.25 * 1.0, 0.75 * 4.0 + 0.25 * 2.0]
    assert own["x"].flatten().tolist() == other["x"].flatten().tolist() == expected
    assert own["y"] is batch["y"]
    assert other["y"].tolist() == ORDER
    assert batch["x"].flatten().tolist() == [1.0, 2.0, 4.0]
    assert mixed.labels_differ
    assert not make(y=torch.zeros(3, dtype=torch.long))[1].labels_differ


def test_a_step_that_changes_its_batch_in_place_finds_it_whole_again():
    _, mixed = make()
    first = mixed.with_own_labels()
    assert mixed.with_partners_labels()["x"] is first["x"]
    first["x"].zero_()
    first["y"].zero_()
    second = mixed.with_partners_labels()
    assert second["x"].flatten().tolist() == [1.75, 1.75, 3.5]
    assert second["y"].tolist() == ORDER


@pytest.mark.parametrize("weight", [0.75, None])
def test_float_labels_are_probabilities_of_the_classes(weight):
    _, mixed = make(weight)
    soft = mixed.with_float_labels(4, [LabelSmoothing(smoothing=0.2)])["y"]
    for row in range(3):
        for column in range(4):
            smooth = [0.8 * (label == column) + 0.05 for label in (row, ORDER[row])]
            expected = smooth[0] if weight is None else weight * smooth[0] + (1 - weight) * smooth[1]
            assert float(soft[row, column]) == pytest.approx(expected)


def test_float_labels_have_their_classes_in_the_second_dimension_and_at_least_float32():
    mask = torch.randint(0, 3, (3, 2, 5))
    soft = make(x=torch.ones(3, 1, dtype=torch.bfloat16), y=mask)[1].with_float_labels(3, [])["y"]
    assert (soft.shape, soft.dtype) == ((3, 3, 2, 5), torch.float32)
    torch.testing.assert_close(soft.sum(1), torch.ones(3, 2, 5))
    assert make(x=torch.ones(3, 1, dtype=torch.float64))[1].with_float_labels(3, [])["y"].dtype == torch.float64


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(SampleError, match=r"'y' holds -1 to 2, but there are 3 classes from 0 on"):
        make(y=torch.tensor([0, -1, 2]))[1].with_float_labels(3, [])
    with pytest.raises(SampleError, match="'y' is of bool"):
        make(y=torch.tensor([True, False, True]))[1].with_float_labels(3, [])
