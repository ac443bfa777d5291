"""Losses that look inside: against the same written into the module, where what learns has an optimizer of its own."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher
from lightning_optim.distillation import Hint
from lightning_optim.errors import TapError, TargetError
from support import quiet

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self, width, seed, recomputes=False):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(width, 4)
        self.recomputes = recomputes

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(checkpoint(block, x, use_reentrant=False) if self.recomputes else block(x))
        return self.head(x.mean((2, 3)))


class Student(LightningModule):
    def __init__(self, **settings):
        super().__init__()
        self.net = Net(3, 0, **settings)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), 1e-2)


class HandWritten(Student):
    """The hint loss between the blocks' outputs and between their inputs, projections and all."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher, self.projections = [teacher.eval()], []

    def on_train_start(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.projections = [nn.Linear(3, 5) for _ in range(2)]
        self.own = torch.optim.AdamW([p for each in self.projections for p in each.parameters()], 1e-2)

    def training_step(self, batch, batch_idx):
        mine, theirs = [], []
        handles = [block.register_forward_hook(lambda _, __, out: mine.append(out)) for block in self.net.blocks]
        handles += [
            block.register_forward_hook(lambda _, __, out: theirs.append(out)) for block in self.teacher[0].blocks
        ]
        logits = self.net(batch[0])
        with torch.no_grad():
            self.teacher[0](batch[0])
        for handle in handles:
            handle.remove()
        hints = [
            F.mse_loss(project(student.movedim(1, -1)).movedim(-1, 1), teacher)
            for project, student, teacher in zip(self.projections, mine, theirs, strict=True)
        ]
        return 0.5 * F.cross_entropy(logits, batch[1]) + 2.0 * (hints[0] + hints[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.own.step()
            self.own.zero_grad()


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 1, 6, 6, generator=generator), torch.randint(0, 4, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def hinting(**settings):
    loss = Hint(**({"student": "net.blocks.*", "learning_rate": 1e-2} | settings))
    return DistillationTeacher(teacher=Net(5, 100), losses={"hint": loss}, weight=2.0, hard_weight=0.5)


def fit(module, *callbacks, ckpt_path=None, max_epochs=2, **settings):
    torch.manual_seed(7)
    trainer = quiet(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return trainer


def assert_same_weights(first, second):
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}])
def test_weights_and_projections_equal_hand_written_hints(settings):
    student, callback, reference = Student(), hinting(), HandWritten(Net(5, 100))
    fit(student, callback, **settings)
    fit(reference, **settings)
    assert_same_weights(student.net, reference.net)
    values = callback.state_dict()["learned"]["hint"]["values"]
    by_hand = [parameter for each in reference.projections for parameter in each.parameters()]
    assert len(values) == 4
    assert all(torch.equal(value, parameter) for value, parameter in zip(values, by_hand, strict=True))
    assert not any(module._forward_hooks for module in student.modules())


def test_a_projection_is_in_no_state_of_the_module_and_learns():
    student, callback = Student(), hinting()
    fit(student, callback)
    assert [*student.state_dict()] == [*Student().state_dict()]
    first, _ = callback.state_dict()["learned"]["hint"]["values"][:2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(first, nn.Linear(3, 5).weight)


def test_a_resumed_fit_is_bit_equal(tmp_path):
    whole, callback = Student(), hinting()
    fit(whole, callback)
    half = fit(Student(), hinting(), max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = Student(), hinting()
    fit(resumed, again, ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(whole, resumed)
    pairs = zip(
        callback.state_dict()["learned"]["hint"]["values"], again.state_dict()["learned"]["hint"]["values"], strict=True
    )
    assert all(torch.equal(*pair) for pair in pairs)


def test_recomputed_blocks_are_seen_once():
    plain, recomputed = Student(), Student(recomputes=True)
    fit(plain, hinting())
    fit(recomputed, hinting())
    assert_same_weights(plain, recomputed)


def test_places_may_be_inputs_and_lists():
    for student, teacher in (("net.head:input", "head:input"), (["net.stem", "net.blocks.1"], ["stem", "blocks.0"])):
        callback = hinting(student=student, teacher=teacher)
        fit(Student(), callback, max_epochs=1)
        assert len(callback.state_dict()["learned"]["hint"]["values"]) == 2 * (1 if isinstance(student, str) else 2)


def test_nothing_learns_where_channels_are_as_many():
    callback = hinting(student="net.blocks.*")
    callback.teacher = DistillationTeacher(teacher=Net(3, 100)).teacher
    fit(Student(), callback, max_epochs=1)
    assert "learned" not in callback.state_dict()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"student": "net.block.*"}, r"student: no module is named like 'net.block.\*'"),
        ({"student": "net.stem", "teacher": "steam"}, "teacher: no module is named 'steam'.*stem"),
        ({"student": "net.blocks.*", "teacher": "stem"}, "there are 2 in the student .*and 1 in the teacher"),
    ],
)
def test_places_that_are_not_there_are_refused_before_any_step(settings, says):
    student = Student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(TargetError, match=says):
        fit(student, hinting(**settings))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_place_that_no_step_reaches_is_refused():
    student = Student()
    student.net.spare = nn.Linear(2, 2)
    with pytest.raises(TapError, match=r"no forward pass went through 'net.spare'"):
        fit(student, hinting(student="net.spare", teacher="stem"))


def test_a_place_that_runs_twice_is_refused():
    student = Student()
    student.net.blocks[1] = student.net.blocks[0]
    with pytest.raises(TapError, match=r"'net.blocks.0' ran 2 times in 1 calls"):
        fit(student, hinting(student="net.blocks.0"))
