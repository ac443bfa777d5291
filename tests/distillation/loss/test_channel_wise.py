import math

import pytest
import torch
from by_hand import rand, softmax
from torch import nn

from lightning_optim.distillation import ChannelWise, Context, Observation
from lightning_optim.schedule import Linear


def by_hand(student, teacher, temperature):
    """Rows of positions, one for each sample and channel."""
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = zip(softmax(mine, temperature), softmax(theirs, temperature), strict=True)
        total += sum(q * math.log(q / p) for p, q in pairs)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_positions_and_not_channels_are_softened(temperature):
    student, teacher = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    loss = ChannelWise(student="a", temperature=temperature)
    expected = by_hand(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), temperature)
    assert float(loss.compare(student, teacher, None)) == pytest.approx(expected, rel=1e-5)
    tokens = student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2)
    assert float(loss.compare(*tokens, None)) == pytest.approx(expected, rel=1e-5)


def test_channels_are_projected_and_maps_pooled():
    student, teacher = rand(2, 3, 4, 4), rand(2, 5, 2, 2, seed=1)
    loss = ChannelWise(student="a", temperature=1.0)
    project = loss.learn(student, teacher)
    assert isinstance(project, nn.Linear)
    pooled = student.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(2)
    mine = torch.einsum("oc,bcp->bop", project.weight, pooled) + project.bias[:, None]
    expected = by_hand(mine.flatten(0, 1), teacher.flatten(2).flatten(0, 1), 1.0)
    assert loss.compare(student, teacher, project).item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_follows_its_schedule():
    features = [Observation((), {}, None, (rand(2, 3, 4, 4, seed=seed),)) for seed in (0, 1)]
    loss = ChannelWise(student="a", temperature=Linear(start=6.0, end=2.0))
    assert loss.has_schedule
    for progress, temperature in ((0.0, 6.0), (0.5, 4.0), (1.0, 2.0)):
        context = Context(progress=progress, batch=None)
        expected = ChannelWise(student="a", temperature=temperature)(*features, context)
        assert torch.equal(loss(*features, context), expected)
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        ChannelWise(student="a", temperature=Linear(start=6.0, end=0.0))


def test_one_position_has_nothing_to_soften():
    for shape in ((2, 3), (2, 3, 1, 1)):
        with pytest.raises(ValueError, match="ChannelWise needs features with several positions"):
            ChannelWise(student="a").compare(rand(*shape), rand(*shape), None)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"learning_rate": 0.0}, {"projection": "some"}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ChannelWise(student="a", **settings)
