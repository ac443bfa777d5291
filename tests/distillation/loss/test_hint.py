import pytest
import torch
from torch import nn

from lightning_optim.distillation import Context, Hint, Observation


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 7, 3), (4, 3, 5, 5), (2, 3, 2, 4, 4)])
def test_it_is_the_mean_of_squares_in_every_layout(shape):
    student, teacher = rand(*shape), rand(*shape) + 1.0
    found = Hint(student="a").compare(student, teacher, None)
    by_hand = sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert float(found) == pytest.approx(by_hand / student.numel(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 3), (4, 6)), ((4, 7, 3), (4, 7, 6)), ((4, 3, 5, 5), (4, 6, 5, 5))]
)
def test_a_projection_is_a_one_by_one_convolution_of_the_channels(student, teacher):
    loss, mine, theirs = Hint(student="a"), rand(*student), rand(*teacher)
    project = loss.learn(mine, theirs)
    assert isinstance(project, nn.Linear)
    columns = mine.flatten(2).transpose(1, 2) if mine.ndim == 4 else mine
    wanted = theirs.flatten(2).transpose(1, 2) if theirs.ndim == 4 else theirs
    expected = ((columns @ project.weight.T + project.bias - wanted) ** 2).mean()
    torch.testing.assert_close(loss.compare(mine, theirs, project), expected)


def test_maps_are_pooled_to_the_teachers_size():
    student, teacher = rand(2, 3, 8, 8), rand(2, 3, 4, 4)
    pooled = student.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(Hint(student="a").compare(student, teacher, None), ((pooled - teacher) ** 2).mean())


def test_pairs_are_summed_and_each_has_its_own_projection():
    loss = Hint(student=["a", "b", "c"])
    student = Observation((), {}, None, (rand(4, 3), rand(4, 5), rand(4, 2)))
    teacher = Observation((), {}, None, (rand(4, 6), rand(4, 5), rand(4, 7)))
    learned = loss.make_learned(student, teacher)
    assert sorted(dict(learned.named_children())) == ["0", "2"]
    found = loss(student, teacher, Context(progress=0.0, batch=None, learned=learned))
    parts = [
        loss.compare(mine, theirs, part)
        for mine, theirs, part in zip(
            student.features, teacher.features, (learned["0"], None, learned["2"]), strict=True
        )
    ]
    torch.testing.assert_close(found, parts[0] + parts[1] + parts[2])


def test_lengths_that_differ_are_refused_with_what_would_bridge_them():
    with pytest.raises(ValueError, match=r"\[2, 5, 3\].*\[2, 6, 3\].*same kind and length"):
        Hint(student="a").compare(rand(2, 5, 3), rand(2, 6, 3), None)
    with pytest.raises(ValueError, match="projection='auto'"):
        Hint(student="a", projection="never").compare(rand(2, 3), rand(2, 4), None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"student": []}, "at least one place"),
        ({"student": "a", "teacher": []}, "at least one place"),
        ({"student": "a", "learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"student": "a", "projection": "some"}, "projection"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Hint(**settings)
