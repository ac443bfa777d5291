import pytest
import torch

from lightning_optim.regularization import Jacobian, Penalized, Response


def response(function, x):
    leaf = x.clone().requires_grad_()
    return Response((leaf,), function(leaf))


def cost(projections, *responses):
    seen = Penalized(weights={}, layers={}, responses=responses)
    return Jacobian(projections=projections)(seen).item()


def test_many_projections_come_near_half_the_squared_norm():
    torch.manual_seed(0)
    matrix, x = torch.randn(5, 3), torch.randn(4, 3)
    exact = 0.0
    for sample in x.tolist():
        for row in matrix.tolist():
            slope = 2.0 * sum(a * b for a, b in zip(row, sample, strict=True))  # of (row . x) ** 2
            exact += sum((slope * entry) ** 2 for entry in row)
    found = cost(4000, response(lambda each: (each @ matrix.T) ** 2, x))
    assert found == pytest.approx(0.5 * exact / len(x), rel=0.05)


def test_calls_are_averaged_and_all_inputs_count():
    x, y = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    both = Response((x, y), (x + 2.0 * y).sum(1))
    assert cost(1, both) == pytest.approx(0.5 * (3 * 1.0 + 3 * 4.0))
    assert cost(1, both, response(lambda each: each.sum(1), torch.ones(2, 3))) == pytest.approx((7.5 + 1.5) / 2)


def test_no_projection_is_refused():
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        Jacobian(projections=0)
