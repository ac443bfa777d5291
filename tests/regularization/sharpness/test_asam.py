import math

import pytest
import torch

from lightning_optim.regularization import ASAM


def test_the_move_is_in_units_of_each_weight():
    weights, gradients, rho, eta = [2.0, -0.5, 0.0], [1.0, -4.0, 3.0], 0.3, 0.1
    sizes = [abs(weight) + eta for weight in weights]
    length = math.sqrt(sum((size * gradient) ** 2 for size, gradient in zip(sizes, gradients, strict=True)))
    expected = [rho * size**2 * gradient / length for size, gradient in zip(sizes, gradients, strict=True)]
    (move,) = ASAM(eta=eta).moves([torch.tensor(weights)], [torch.tensor(gradients)], rho)
    torch.testing.assert_close(move, torch.tensor(expected))


def test_layers_that_undo_each_others_scale_move_the_loss_alike():
    def moved(scale):
        weights = [torch.tensor([0.8]) * scale, torch.tensor([-0.6]) / scale]
        gradients = [weights[1] * 2.0, weights[0] * 2.0]  # of twice their product
        moves = ASAM(eta=0.0).moves(weights, gradients, rho=0.1)
        return [float((weight + move).item() / weight.item()) for weight, move in zip(weights, moves, strict=True)]

    assert moved(1.0) == pytest.approx(moved(16.0))


def test_eta_must_be_a_number_of_at_least_zero():
    with pytest.raises(ValueError, match="eta must be a number of at least 0, got -1"):
        ASAM(eta=-1.0)
