"""Teachers made of the student, in a fit: equal to the same written into the module, beside what prunes it."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant, Window
from lightning_optim.distillation import EMA, MeanSquaredError, Uncompressed
from lightning_optim.errors import TargetError
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Linear
from support import quiet, run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")


def net(seed=0):
    torch.manual_seed(seed)
    conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    return nn.Sequential(*conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, 1, 5, 5, generator=generator)
    return x, x.flatten(1)[:, :4].argmax(1)


class Student(LightningModule):
    """Its data are a function of the batch's number, so that a resumed fit meets the same."""

    def __init__(self, seed=0):
        super().__init__()
        self.net = net(seed)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch_of(100 * self.current_epoch + batch_idx)
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class ByHand(Student):
    """The same with its teacher written in."""

    def __init__(self, decay=None):
        super().__init__()
        self.teacher = [copy.deepcopy(self.net).eval()]
        self.decay = decay

    def training_step(self, batch, batch_idx):
        x, y = batch_of(100 * self.current_epoch + batch_idx)
        logits = self(x)
        with torch.no_grad():
            answer = self.teacher[0](x)
        return F.cross_entropy(logits, y) * 0.5 + 0.5 * F.mse_loss(logits, answer)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        if self.decay is None:
            return
        for mine, theirs in zip(self.teacher[0].parameters(), self.net.parameters(), strict=True):
            mine.data = mine.data.lerp(theirs.data, 1.0 - self.decay)
        for mine, theirs in zip(self.teacher[0].buffers(), self.net.buffers(), strict=True):
            mine.copy_(theirs)


def distil(teacher, **settings):
    return DistillationTeacher(teacher=teacher, losses=MeanSquaredError(), **settings)


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, **{"max_epochs": 2, **settings})
    trainer.fit(module, DataLoader(torch.arange(4), batch_size=1), ckpt_path=ckpt_path)
    return trainer


TEACHERS = {"uncompressed": (Uncompressed(), None), "ema": (EMA(decay=0.6), 0.6)}


@pytest.fixture(params=TEACHERS)
def kind(request):
    return TEACHERS[request.param]


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_weights_equal_the_same_written_into_the_module(kind, settings):
    teacher, decay = kind
    student, reference = Student(), ByHand(decay)
    callback = distil(teacher)
    fit(student, callback, **settings)
    fit(reference, **settings)
    assert same(dict(student.net.state_dict()), dict(reference.net.state_dict()))
    assert same(dict(callback.teacher_module.state_dict()), dict(reference.teacher[0].state_dict()))
    assert not set(vars(student)) & {"training_step", "manual_backward"}


def prune(**settings):
    window = Window(begin=1, end=6, unit="step")
    return PruningScheduler(structure=Channel(), schedule=Linear(start=0.0, end=0.5), window=window, **settings)


class Saves(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def order_of(case, teacher):
    made = [distil(teacher)]
    made += [prune()] if "prune" in case else []
    made += [QATFakeQuant()] if "quantize" in case else []
    return made if case.endswith("last") else made[::-1]


@pytest.mark.parametrize("case", ["prune last", "prune first", "quantize last", "prune, quantize first"])
def test_resume_is_bit_equal_beside_what_changes_the_network(kind, case, tmp_path):
    teacher, _ = kind
    whole, resumed = Student(), Student(seed=9)
    callbacks = order_of(case, teacher)
    trainer = fit(whole, *callbacks, Saves(tmp_path / "half.ckpt"))
    again = order_of(case, teacher)
    go_on = fit(resumed, *again, ckpt_path=tmp_path / "half.ckpt")
    assert same(dict(whole.net.state_dict()), dict(resumed.net.state_dict()))
    first, second = (
        next(each for each in found if isinstance(each, DistillationTeacher)) for found in (callbacks, again)
    )
    assert same(first.state_dict(), second.state_dict())
    assert trainer.global_step == go_on.global_step


@pytest.mark.parametrize("first", [True, False])
def test_uncompressed_teacher_is_the_dense_network_while_the_student_is_cut_and_quantized(first):
    student, begun = Student(), net()
    teacher = distil(Uncompressed())
    others = [prune(), QATFakeQuant()]
    fit(student, *([teacher, *others] if first else [*others, teacher]))
    assert student.net[0].out_channels < 8
    assert same(dict(teacher.teacher_module.state_dict()), dict(begun.state_dict()))
    x = batch_of(0)[0]
    assert torch.equal(teacher.teacher_module(x), begun.eval()(x))


@pytest.mark.parametrize("first", [True, False])
def test_average_is_cut_with_the_student(first):
    student, teacher = Student(), distil(EMA(decay=0.5))
    pruner = prune()
    fit(student, *([teacher, pruner] if first else [pruner, teacher]))
    shapes = {name: value.shape for name, value in student.net.state_dict().items()}
    assert student.net[0].out_channels < 8
    assert shapes == {name: value.shape for name, value in teacher.teacher_module.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in teacher.teacher_module.parameters())


def test_average_of_a_part_of_what_is_pruned_is_refused():
    student = Student()
    with pytest.raises(TargetError, match=r"average of 'net', which is a part of what is pruned .*to the same name"):
        fit(student, distil(EMA()), prune(network=""))
    assert same(dict(student.net.state_dict()), dict(net().state_dict()))


def test_each_fit_begins_with_the_student_that_it_trains():
    callback, second = distil(Uncompressed()), Student(seed=4)
    fit(Student(), callback)
    fit(second, callback)
    assert same(dict(callback.teacher_module.state_dict()), dict(net(4).state_dict()))


def test_checkpoint_of_a_plain_fit_is_what_the_teacher_begins_with(tmp_path):
    plain = Student()
    trainer = fit(plain, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    callback = distil(Uncompressed())
    fit(Student(seed=5), callback, ckpt_path=tmp_path / "plain.ckpt")
    assert same(dict(callback.teacher_module.state_dict()), dict(plain.net.state_dict()))


def test_step_that_half_precision_skips_does_not_count():
    class Overflows(Student):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx else loss

    callback, student = distil(EMA(decay=0.5), hard_weight=1.0), Overflows()
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
    begun = net()[7].weight.detach().clone()
    fit(student, callback, plugins=[scaled], max_epochs=1)
    torch.testing.assert_close(callback.teacher_module[7].weight, begun.lerp(student.net[7].weight.detach(), 0.5))


def test_average_follows_each_step_of_manual_optimization_and_not_each_batch():
    class Manual(Student):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()
                self.seen.append(self.net[7].weight.detach().clone())

    callback, student = distil(EMA(decay=0.5)), Manual()
    student.seen = [student.net[7].weight.detach().clone()]
    fit(student, callback)
    average = student.seen[0]
    for weight in student.seen[1:]:
        average = average.lerp(weight, 0.5)
    assert len(student.seen) == 5
    assert torch.equal(callback.teacher_module[7].weight, average)


def test_average_of_a_student_in_half_precision_is_kept_in_float32_or_refused():
    with pytest.raises(ValueError, match=r"in bfloat16, as the student's are, would lose small steps: set .*'float32'"):
        fit(Student(), distil(EMA()), precision="bf16-true")

    class Half(Student):
        def training_step(self, batch, batch_idx):
            x, y = batch_of(batch_idx)
            return F.cross_entropy(self(x.bfloat16()).float(), y)

    callback, student = distil(EMA(decay=0.9, precision="float32")), Half()
    fit(student, callback, precision="bf16-true")
    assert student.net[7].weight.dtype is torch.bfloat16
    assert callback.teacher_module[7].weight.dtype is torch.float32
    assert not torch.equal(callback.teacher_module[7].weight.bfloat16(), student.net[7].weight)


def test_layers_built_in_configure_model_are_refused_by_name():
    class Late(Student):
        def __init__(self):
            LightningModule.__init__(self)

        def configure_model(self):
            self.net = net()

    with pytest.raises(ValueError, match=r"its '0.bias' is nothing, .* Build all layers in __init__"):
        fit(Late(), distil(Uncompressed()))


@pytest.mark.slow
def test_average_ends_equal_on_two_ranks(tmp_path):
    done = run_script(Path(__file__).with_name("student_on_ranks.py"), 2, cwd=tmp_path)
    said = sorted(line for line in done.stdout.splitlines() if line.startswith(("ema", "fsdp2")))
    assert said == ["ema equal"] * 2, done.stdout
