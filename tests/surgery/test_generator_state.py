"""What is drawn after a state is put back is what was drawn after it was read, whoever draws."""

import random

import numpy
import torch

from lightning_optim.surgery.generator_state import GeneratorState, seeded

CPU = torch.device("cpu")


def draws():
    return torch.rand(1).item(), numpy.random.rand(), random.random()


def test_a_state_is_that_of_all_generators():
    state = GeneratorState.of(CPU)
    first, second = draws(), draws()
    state.restore()
    assert (draws(), draws()) == (first, second)
    assert len({*first, *second}) == 6


def test_operators_draw_from_a_seed_for_a_while():
    torch.manual_seed(0)
    expected = draws()
    torch.manual_seed(0)
    with seeded(5, CPU):
        inner = torch.rand(3)
        with seeded(6, CPU):
            assert not torch.equal(torch.rand(3), inner)
    assert torch.rand(1).item() == expected[0]
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), inner)
