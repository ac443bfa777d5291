import math

import pytest
import torch

from lightning_optim.export.output_comparison import OutputComparison, class_dims


def compared(trained, found, tie=0.0):
    comparison = OutputComparison("output", tie)
    comparison.add(torch.as_tensor(trained), torch.as_tensor(found))
    return comparison.result()


def test_numbers_of_several_batches_worked_by_hand():
    comparison = OutputComparison("output")
    comparison.add(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    comparison.add(torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 1.0]]))
    found = comparison.result()
    assert found.relative_error == pytest.approx(math.sqrt((4 + 9) / (9 + 1 + 16)))
    assert (found.max_abs_error, found.worst) == (3.0, (2, 1))
    assert found.exact_fraction == pytest.approx(4 / 6)
    assert found.top1_agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((), ()),
        ((8,), ()),
        ((8, 1), ()),
        ((8, 5), (1,)),
        ((8, 1, 4, 4), ()),
        ((8, 3, 4, 4), (1, 3)),
        ((8, 4, 1), (1,)),
        ((8, 3, 4), (1, 2)),
    ],
)
def test_classes_lie_behind_the_batch_in_more_than_one_entry(shape, dims):
    assert class_dims(torch.ones(shape)) == dims
    assert class_dims(torch.ones(shape, dtype=torch.long)) == class_dims(torch.ones(shape) > 0) == ()


def test_classes_are_found_whichever_dimension_holds_them():
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 0] = 1.0
    found = logits.clone()
    found[:, 1] = 1.0 + 1e-4  # another class everywhere, hardly another value
    assert compared(logits + 100.0, found + 100.0).top1_agreement == 0.0
    assert compared((logits + 100.0).movedim(1, -1), (found + 100.0).movedim(1, -1)).top1_agreement == 0.0


def test_classes_that_lie_close_together_count_as_one():
    trained, found = [[0.0, 1.0, 0.96]], [[0.0, 0.97, 0.98]]
    assert compared(trained, found).top1_agreement == 0.0
    assert compared(trained, found, tie=0.05).top1_agreement == 1.0
    assert compared([[-1e9, 1.0, 0.5]], [[-1e9, 0.5, 1.0]], tie=0.05).top1_agreement == 0.0


@pytest.mark.parametrize("sentinel", [-math.inf, math.inf, -1e9, torch.finfo(torch.float32).min])
def test_a_sentinel_hides_no_other_value(sentinel):
    found = compared([[1.0, sentinel, 3.0]], [[1.0, sentinel, 2.0]])
    assert found.relative_error == pytest.approx(math.sqrt(1 / 10))
    assert found.max_abs_error == 1.0
    for one, other in (
        ([1.0, sentinel], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, sentinel]),
        ([1.0, sentinel], [1.0, -sentinel]),
    ):
        assert not compared([one], [other]).relative_error <= 0.99


def test_labels_are_compared_by_how_many_differ():
    assert compared([1, 2, 3, 900], [1, 2, 3, 0]).relative_error == 0.25
    assert compared([True, False], [True, True]).relative_error == 0.5
    assert compared([0, 0], [0, 0]).relative_error == 0.0


def test_nan_and_a_signal_of_zero_do_not_pass():
    assert math.isnan(compared([1.0, math.nan], [1.0, math.nan]).relative_error)
    assert math.isnan(compared([1.0, 1.0], [1.0, math.nan]).max_abs_error)
    assert compared([0.0, 0.0], [0.0, 1.0]).relative_error == math.inf
    assert compared([0.0, 0.0], [0.0, 1e-8]).relative_error == 0.0
    assert compared([0.0, 0.0], [0.0, 0.0]).relative_error == 0.0


def test_an_empty_output_differs_in_nothing():
    assert compared(torch.zeros(0, 3), torch.zeros(0, 3)).relative_error == 0.0
