import math

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import CRD
from lightning_optim.errors import SampleError


def embed(weight, bias, rows):
    found = []
    for row in rows:
        values = [sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weight, bias, strict=True)]
        found.append([value / math.hypot(*values) for value in values])
    return found


def contrast(first, second, temperature):
    total = 0.0
    for i, view in enumerate(first):
        powers = [math.exp(sum(a * b for a, b in zip(view, other, strict=True)) / temperature) for other in second]
        total -= math.log(powers[i] / sum(powers))
    return total / len(first)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_formula_both_ways(temperature):
    student, teacher = rand(5, 3), rand(5, 6, seed=1)
    loss = CRD(student="a", dimension=4, temperature=temperature)
    learned = loss.learn(student, teacher)
    weights = [parameter.tolist() for parameter in learned.parameters()]
    mine, theirs = embed(*weights[:2], student.tolist()), embed(*weights[2:], teacher.tolist())
    expected = contrast(mine, theirs, temperature) + contrast(theirs, mine, temperature)
    assert loss.compare(student, teacher, learned).item() == pytest.approx(expected, rel=1e-4)


def test_maps_and_tokens_are_averaged_over_their_positions():
    maps, tokens, loss = rand(4, 3, 2, 2), rand(4, 5, 6, seed=1), CRD(student="a")
    learned = loss.learn(maps, tokens)
    torch.testing.assert_close(
        loss.compare(maps, tokens, learned), loss.compare(maps.mean((2, 3)), tokens.mean(1), learned)
    )


def test_a_batch_of_one_has_nothing_to_be_told_from():
    loss = CRD(student="a")
    with pytest.raises(SampleError, match="CRD compares samples with each other and needs at least 2"):
        loss.compare(rand(1, 3), rand(1, 3), loss.learn(rand(1, 3), rand(1, 3)))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"dimension": 0}, {"learning_rate": 0.0}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CRD(student="a", **settings)
