"""A cached teacher asks for what is missing and for nothing else."""

import pytest
import torch
from torch import nn

from lightning_optim.distillation import AnswerCache, MeanSquaredError
from lightning_optim.distillation.cache.cached_teacher import CachedTeacher
from lightning_optim.distillation.cache.kept import KeptAnswers
from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.surgery.tap import ModuleCall


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor, self.asked = nn.Parameter(torch.tensor(2.0)), []

    def forward(self, x):
        self.asked.append(x[:, 0].tolist())
        return self.factor * x


def cached(folder, net, frozen=None):
    kept = KeptAnswers({"mse": MeanSquaredError()}, None)
    return CachedTeacher(frozen or FrozenTeacher(net), AnswerCache(folder=folder), kept, None)


def call(*numbers):
    x = torch.tensor(numbers, dtype=torch.float32).view(-1, 1)
    return Recording(ModuleCall((x,), {}, x))


def test_samples_that_are_missing_are_asked_for_once(tmp_path):
    net = Doubled()
    teacher = cached(tmp_path, net)
    for numbers in ((1, 2), (2, 3, 1), (3, 3), (5, 5, 1, 6)):
        answer = teacher(call(*numbers), 0, None).call.output
        assert answer.flatten().tolist() == [2.0 * number for number in numbers]
    assert net.asked == [[1.0, 2.0], [3.0], [5.0, 6.0]]
    assert (teacher.num_seen, teacher.num_missed) == (11, 5)


def test_nothing_is_written_before_the_step_has_ended(tmp_path):
    teacher = cached(tmp_path / "answers", Doubled())
    teacher(call(1, 2), 0, None)
    assert not (tmp_path / "answers").exists()
    teacher.flush()
    net = Doubled()
    assert cached(tmp_path / "answers", net)(call(2, 1), 0, None).call.output.flatten().tolist() == [4.0, 2.0]
    assert net.asked == []


def test_a_teacher_that_learns_is_refused(tmp_path):
    frozen = FrozenTeacher(Doubled())
    frozen.module.factor.requires_grad_()
    with pytest.raises(ValueError, match="learns or follows the student answers otherwise"):
        cached(tmp_path, None, frozen)
