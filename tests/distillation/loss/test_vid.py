import math

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import VID


def linear(weight, bias, values):
    return [sum(w * x for w, x in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def by_hand(parameters, student, teacher):
    """Columns of channels, one for each sample and position."""
    alpha, *layers = [parameter.tolist() for parameter in parameters]
    variances = [math.log(1 + math.exp(value)) + 1e-5 for value in alpha]
    total, number = 0.0, 0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        hidden = [max(value, 0.0) for value in linear(*layers[0:2], mine)]
        hidden = [max(value, 0.0) for value in linear(*layers[2:4], hidden)]
        for mean, variance, target in zip(linear(*layers[4:6], hidden), variances, theirs, strict=True):
            total += math.log(math.sqrt(variance)) + (target - mean) ** 2 / (2 * variance)
            number += 1
    return total / number


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 3), (4, 5)), ((2, 7, 3), (2, 7, 5)), ((2, 3, 4, 4), (2, 5, 2, 2))]
)
def test_it_is_the_formula_in_every_layout(student, teacher):
    student, teacher, loss = rand(*student), rand(*teacher, seed=1), VID(student="a")
    learned = loss.learn(student, teacher)
    with torch.no_grad():
        learned.alpha.copy_(rand(5, seed=2))
    found = loss.compare(student, teacher, learned)
    if student.ndim == 4:
        student = student.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).movedim(1, -1)
        teacher = teacher.movedim(1, -1)
    expected = by_hand(learned.parameters(), student.flatten(0, -2), teacher.flatten(0, -2))
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("variance", [0.01, 1.0, 5.0, 200.0])
def test_the_variance_begins_where_it_is_told(variance):
    learned = VID(student="a", initial_variance=variance).learn(rand(2, 3), rand(2, 4))
    torch.testing.assert_close(learned.variance(), torch.full((4,), variance))


def test_lengths_that_differ_are_refused():
    loss = VID(student="a")
    learned = loss.learn(rand(2, 3, 4), rand(2, 5, 4))
    with pytest.raises(ValueError, match="the student has 3 of them in 2 samples and the teacher 5"):
        loss.compare(rand(2, 3, 4), rand(2, 5, 4), learned)


@pytest.mark.parametrize("settings", [{"initial_variance": 0.0}, {"learning_rate": 0.0}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VID(student="a", **settings)
