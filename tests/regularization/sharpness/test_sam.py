import math

import pytest
import torch
from torch import nn

from lightning_optim.regularization import SAM
from lightning_optim.schedule import Linear


def test_the_move_is_along_the_gradient_and_of_length_rho_over_all_weights():
    gradients = [[[3.0, 0.0], [-1.0, 2.0]], [0.5]]
    length = math.sqrt(sum(value**2 for value in (3.0, 0.0, -1.0, 2.0, 0.5)))
    moves = SAM(rho=0.2).moves([torch.ones(2, 2), torch.ones(1)], [torch.tensor(each) for each in gradients], rho=0.2)
    expected = [[[0.2 * value / length for value in row] for row in gradients[0]], [0.2 * 0.5 / length]]
    for move, values in zip(moves, expected, strict=True):
        torch.testing.assert_close(move, torch.tensor(values))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_moves_where_a_gradient_is_not_finite(value):
    moves = SAM().moves([torch.ones(2), torch.ones(1)], [torch.tensor([1.0, value]), torch.ones(1)], rho=0.1)
    assert [move.tolist() for move in moves] == [[0.0, 0.0], [0.0]]


def test_a_gradient_of_zero_moves_nothing_and_half_precision_is_summed_in_float32():
    assert SAM().moves([torch.ones(1)], [torch.zeros(1)], rho=0.1)[0].tolist() == [0.0]
    many = torch.full((4096,), 0.01, dtype=torch.bfloat16)
    (move,) = SAM().moves([many], [many], rho=1.0)
    assert move.dtype == torch.bfloat16
    assert float(move.float().norm()) == pytest.approx(1.0, rel=4e-3)


def test_rho_may_follow_a_schedule_and_must_be_a_positive_number_otherwise():
    assert [SAM(rho=Linear(start=0.0, end=0.2)).rho_at(progress) for progress in (0.0, 0.5)] == [0.0, 0.1]
    for wrong in (0.0, -0.1, math.inf):
        with pytest.raises(ValueError, match="rho must be"):
            SAM(rho=wrong)


def test_matrices_leave_biases_and_scales_out():
    layers = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU()
    assert [SAM(parameters="matrices").parameter_names(layer) for layer in layers] == [["weight"], [], []]
    assert [SAM().parameter_names(layer) for layer in layers] == [["weight", "bias"]] * 2 + [[]]
