"""Teachers made of the student: each weight as Python floats give it."""

import pytest
import torch
from torch import nn

from lightning_optim.distillation import EMA, Uncompressed
from lightning_optim.distillation.teacher.student_copy import StudentCopy


def net():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def copy_of(teacher, student):
    return teacher.freeze(teacher.load(lambda: student)).copies[0]


def test_average_is_the_one_that_a_loop_over_floats_makes():
    student = net()
    copied = copy_of(EMA(decay=0.75), student)
    copied.begin(student)
    average = student[0].weight.flatten().tolist()
    for step in range(3):
        with torch.no_grad():
            student[0].weight.mul_(-1.5).add_(step)
            student[1].running_mean.add_(1.0)
        copied.follow_step(student)
        new = student[0].weight.flatten().tolist()
        average = [0.75 * old + 0.25 * value for old, value in zip(average, new, strict=True)]
    assert copied.module[0].weight.flatten().tolist() == pytest.approx(average, rel=1e-6)
    assert copied.module[1].running_mean.tolist() == [3.0, 3.0]


def test_a_weight_that_layers_share_is_averaged_once():
    student = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    student[1].weight = student[0].weight
    copied = copy_of(EMA(decay=0.5), student)
    copied.begin(student)
    before = student[0].weight.detach().clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    copied.follow_step(student)
    torch.testing.assert_close(copied.module[1].weight, before + 0.5)


def test_uncompressed_stays_as_the_student_was_when_the_fit_began():
    student = net()
    copied = copy_of(Uncompressed(), student)
    with torch.no_grad():
        student[0].weight.fill_(2.0)  # a checkpoint is loaded after the copy was made
    copied.begin(student)
    with torch.no_grad():
        student[0].weight.fill_(3.0)
    copied.follow_step(student)
    copied.begin(student)
    assert bool((copied.module[0].weight == 2.0).all())


def test_loaded_weights_are_not_replaced_by_the_students():
    student, saved = net(), StudentCopy(net())
    copied = copy_of(Uncompressed(), student)
    copied.load_state_dict(saved.state_dict())
    copied.begin(student)
    assert torch.equal(copied.module[0].weight, saved.module[0].weight)


def test_student_of_another_structure_is_refused_by_name():
    copied = StudentCopy(net())
    before = copied.module[0].weight.clone()
    with pytest.raises(ValueError, match=r"its '1.weight' is \[2\], the student's network has nothing there"):
        copied.begin(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"'0.weight' is \[2, 3\], the checkpoint has \[2, 4\] there"):
        copied.load_state_dict(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).state_dict())
    assert torch.equal(copied.module[0].weight, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "at 1 it stays as it is, which Uncompressed does"),
        ({"decay": 0.0}, "decay must lie between 0 and 1, got 0.0"),
        ({"precision": "bfloat16"}, "an average of weights needs float32"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EMA(**settings)
