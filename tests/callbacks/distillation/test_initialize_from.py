import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher, PruningScheduler
from lightning_optim.distillation import EMA
from lightning_optim.schedule import Linear
from support import quiet, same


def net(blocks, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(blocks))), nn.Linear(8, 3))


class Student(LightningModule):
    def __init__(self, rate=0.0):
        super().__init__()
        self.net, self.rate = net(2, 0), rate

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), self.rate)


def loader():
    torch.manual_seed(2)
    return DataLoader(TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,))), batch_size=8)


def distil(**settings):
    names = {"net.1.*": "1.*", "net.2": "2"}
    return DistillationTeacher(**({"teacher": net(4, 1), "initialize_from": names} | settings))


def test_the_fit_begins_as_layers_of_the_teacher_and_the_teacher_stays():
    student, callback = Student(), distil()
    stem, teacher = student.net[0].weight.clone(), copy.deepcopy(callback.teacher.module.state_dict())
    quiet(callback, max_epochs=1).fit(student, loader())
    for place in range(2):
        assert torch.equal(student.net[1][place].weight, callback.teacher_module[1][2 * place].weight)
    assert torch.equal(student.net[0].weight, stem)
    assert torch.equal(student.net[2].weight, callback.teacher_module[2].weight)
    assert same(teacher, dict(callback.teacher_module.state_dict()))
    assert not any(parameter.requires_grad for parameter in callback.teacher_module.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_resumed_fit_and_one_that_goes_on_are_left_as_they_are(tmp_path):
    student, trainer = Student(0.1), quiet(distil(), max_epochs=1)
    trainer.fit(student, loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(student, loader())
    resumed = Student(0.1)
    quiet(distil(), max_epochs=2).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert same(dict(student.state_dict()), dict(resumed.state_dict()))


@pytest.mark.parametrize("first", ["distil", "prune"])
def test_what_prunes_sees_the_layers_of_the_teacher(first):
    prune = PruningScheduler(schedule=Linear(start=0.5, end=0.5))
    callbacks = [distil(), prune] if first == "distil" else [prune, distil()]
    student = Student()
    quiet(*callbacks, max_epochs=1).fit(student, loader())
    weight, source = student.net[1][1].weight, net(4, 1)[1][2].weight
    kept = weight != 0.0
    assert 0 < int(kept.sum()) < kept.numel()
    assert torch.equal(weight[kept], source[kept])
    assert source[kept].abs().min() >= source[~kept].abs().max()


def test_a_teacher_that_is_made_of_the_student_has_nothing_to_give():
    with pytest.raises(ValueError, match="needs a teacher of its own weights"):
        quiet(distil(teacher=EMA(decay=0.9)), max_epochs=1).fit(Student(), loader())
