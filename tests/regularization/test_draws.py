import torch

from lightning_optim.regularization.draws import generator_for


def test_draws_are_those_of_their_numbers():
    first = {
        numbers: torch.rand(4, generator=generator_for(*numbers)).tolist() for numbers in [(0, 1), (1, 0), (0, 1, 0)]
    }
    assert len({tuple(values) for values in first.values()}) == 3
    assert torch.rand(4, generator=generator_for(0, 1)).tolist() == first[0, 1]
