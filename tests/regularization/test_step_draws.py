"""Each call in a step has draws of its own, and has them again in the backward."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_optim.regularization.step_draws import StepDraws


def test_seeds_differ_by_batch_rank_name_and_call_and_are_the_same_again():
    draws, found = StepDraws("a", 0), []
    for number, rank in [(0, 0), (1, 0), (0, 1), (0, 0)]:
        with draws.step(number, rank):
            found += [draws.seed("one"), draws.seed("one"), draws.seed("other")]
    assert len(set(found)) == 9
    assert found[:3] == found[-3:]
    assert draws.seed("one") is None
    other = StepDraws("b", 0)
    with other.step(0, 0):
        assert other.seed("one") not in found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_draws_the_same_in_the_backward(reentrant, nested):
    draws, seen = StepDraws("a", 0), []

    def inner(x):
        seen.append(draws.seed("one"))
        return x.exp()

    def outer(x):
        seen.append(draws.seed("one"))
        return (checkpoint(inner, x, use_reentrant=reentrant) if nested else inner(x)).exp()

    x = torch.ones(2, requires_grad=True)
    with draws.step(0, 0):
        y = x
        for _ in range(2):
            y = checkpoint(outer, y, use_reentrant=reentrant)
    first = list(seen)
    assert len(set(first)) == 4
    y.sum().backward()
    assert set(seen[4:]) == set(first)
    assert draws.seed("one") is None
