"""A cached teacher teaches what the teacher teaches, and is asked once for each sample."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_optim import DistillationTeacher, SharpnessAware
from lightning_optim.distillation import (
    EMA,
    AnswerCache,
    FromBatch,
    Hint,
    MeanSquaredError,
    ModuleTeacher,
    Several,
    SoftTarget,
    Uncompressed,
)
from lightning_optim.errors import ArtefactError
from support import quiet, same

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 40


class Net(nn.Module):
    def __init__(self, width=4, classes=6, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(5, width), nn.Linear(width, classes)
        self.asked = []

    def forward(self, x, shift=None):
        self.asked.append(len(x))
        hidden = self.first(x).relu()
        return self.second(hidden if shift is None else hidden + shift)


class Teacher(Net):
    def __init__(self, classes=6, seed=9):
        super().__init__(7, classes, seed)


class Student(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), 1e-2)


def data(size=SIZE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator), torch.randint(0, 6, (size,), generator=generator)


def loader(dataset=None, seed=3, **settings):
    dataset = TensorDataset(*data()) if dataset is None else dataset
    generator = torch.Generator().manual_seed(seed)
    settings = {"batch_size": 8, "shuffle": not isinstance(dataset, IterableDataset)} | settings
    return DataLoader(dataset, generator=generator, **settings)


def distil(folder, teacher=None, losses=None, top_k=None, key=None, **settings):
    cache = None if folder is None else AnswerCache(folder=folder, top_k=top_k, key=key)
    losses = SoftTarget(temperature=2.0) if losses is None else losses
    return DistillationTeacher(teacher=teacher or Teacher(), losses=losses, cache=cache, **settings)


def fit(*callbacks, module=None, batches=None, ckpt_path=None, **settings):
    module = Student() if module is None else module
    trainer = quiet(*callbacks, **{"max_epochs": 3} | settings)
    trainer.fit(module, loader() if batches is None else batches, ckpt_path=ckpt_path)
    return module


def asked(callback):
    return sum(callback.teacher_module.asked)


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}], ids=str
)
def test_weights_equal_those_of_the_teacher_that_is_asked_every_time(settings, tmp_path):
    losses = {"soft": SoftTarget(temperature=2.0), "mse": MeanSquaredError(), "hint": Hint(student="net.first")}
    plain, cached = distil(None, losses=losses), distil(tmp_path, losses=losses)
    reference = fit(plain, batches=loader(shuffle=False), **settings)
    student = fit(cached, batches=loader(shuffle=False), **settings)
    assert same(dict(reference.state_dict()), dict(student.state_dict()))
    assert same(plain.state_dict(), cached.state_dict())
    assert asked(plain) == 3 * SIZE
    assert asked(cached) == SIZE


def test_samples_are_found_in_whatever_batch_they_come(tmp_path):
    plain, cached = distil(None), distil(tmp_path)
    reference, student = fit(plain), fit(cached)
    assert asked(cached) == SIZE
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_later_fits_read_what_earlier_ones_have_written(tmp_path):
    fit(distil(tmp_path))
    callback = distil(tmp_path, losses={"mse": MeanSquaredError(), "soft": SoftTarget(temperature=5.0)})
    fit(callback)
    assert asked(callback) == 0


def test_a_fit_that_was_stopped_is_completed_by_the_next(tmp_path):
    fit(distil(tmp_path), max_steps=3)
    assert not (tmp_path / "complete.json").exists()
    callback = distil(tmp_path)
    fit(callback, batches=loader(seed=4))
    assert asked(callback) == SIZE - 24
    assert any(0 < count < 8 for count in callback.teacher_module.asked)
    assert json.loads((tmp_path / "complete.json").read_text()) == {"samples": SIZE}


class FixedBatch(Teacher):
    def forward(self, x):
        if len(x) != 8:
            raise ValueError("takes 8 samples")
        return super().forward(x)


def test_a_teacher_of_one_batch_size_is_asked_for_whole_batches(tmp_path):
    fit(distil(tmp_path), max_steps=3)
    callback = distil(tmp_path, teacher=FixedBatch())
    fit(callback, batches=loader(seed=4))
    assert set(callback.teacher_module.asked) == {8}


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_fit_resumed_in_the_first_epoch_goes_on_as_without_what_was_written_since(top_k, tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    part = {"folder": tmp_path / "part", "top_k": top_k}
    fit(distil(**part), saving, batches=loader(shuffle=False), max_steps=4, enable_checkpointing=True)
    others = [distil(**part), distil(tmp_path / "new", top_k=top_k), *([distil(None)] if top_k is None else [])]
    ends = [fit(other, batches=loader(shuffle=False), ckpt_path=tmp_path / "step=3.ckpt") for other in others]
    assert all(same(dict(ends[0].state_dict()), dict(end.state_dict())) for end in ends)
    assert asked(others[0]) < asked(others[1])


class ByHand(Student):
    """Learns the two likeliest classes of the teacher, and the others as one."""

    def __init__(self):
        super().__init__()
        self.teacher = [Teacher().eval().requires_grad_(False)]

    def training_step(self, batch, batch_idx):
        logits, theirs = self.net(batch[0]).float(), self.teacher[0](batch[0]).float()
        p, q = (logits / 2.0).softmax(1), (theirs / 2.0).softmax(1)
        top = q.topk(2).indices
        p, q = (torch.cat([each.gather(1, top), 1.0 - each.gather(1, top).sum(1, keepdim=True)], 1) for each in (p, q))
        return 0.5 * F.cross_entropy(logits, batch[1]) + 0.5 * 4.0 * (q * (q / p).log()).sum(1).mean()


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_likeliest_classes_teach_what_the_hand_written_buckets_do(settings, tmp_path):
    reference = fit(module=ByHand(), batches=loader(shuffle=False), **settings)
    student = fit(distil(tmp_path, top_k=2), batches=loader(shuffle=False), **settings)
    begun = Student().state_dict()
    for name, tensor in student.state_dict().items():
        expected = reference.state_dict()[name]
        assert (tensor - expected).abs().max() <= 0.02 * (expected - begun[name]).abs().max()


class Twice(Student):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1]) + self.net(batch[0].flip(1)).square().mean()


class Keyword(Student):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0], shift=batch[0][:, :1]), batch[1])


class Manual(Student):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


class SkipsSome(Student):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [Twice, Keyword, Manual, SkipsSome])
@pytest.mark.parametrize("key", [None, 2])
def test_steps_of_other_kinds_equal_those_of_the_teacher_that_is_asked(key, kind, tmp_path):
    batches = {"dataset": TensorDataset(*data(), torch.arange(SIZE)), "shuffle": False}
    plain, cached = distil(None), distil(tmp_path, key=key)
    reference = fit(plain, module=kind(), batches=loader(**batches))
    student = fit(cached, module=kind(), batches=loader(**batches))
    assert same(dict(reference.state_dict()), dict(student.state_dict()))
    assert asked(plain) == 3 * asked(cached)


class Heads(Net):
    def forward(self, x):
        logits = super().forward(x)
        return {"heads": [logits, -logits], "words": "x", "mean": logits.mean()}


class HeadsStudent(Student):
    def __init__(self):
        super().__init__()
        self.net = Heads()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0])["heads"][0], batch[1])


@pytest.mark.parametrize("top_k", [None, 2])
def test_outputs_with_several_tensors_are_kept_as_far_as_losses_read_them(top_k, tmp_path):
    losses = {"one": SoftTarget(output="heads.0"), "other": SoftTarget(output="heads.1", temperature=2.0)}
    cached = distil(tmp_path, losses=losses, teacher=Heads(7, 6, 9), top_k=top_k)
    student = fit(cached, module=HeadsStudent(), batches=loader(shuffle=False))
    assert asked(cached) == SIZE
    if top_k is None:
        reference = fit(
            distil(None, losses=losses, teacher=Heads(7, 6, 9)), module=HeadsStudent(), batches=loader(shuffle=False)
        )
        assert same(dict(reference.state_dict()), dict(student.state_dict()))


def test_a_student_that_returns_a_tensor_reads_what_one_that_returns_a_dict_has_written(tmp_path):
    fit(distil(tmp_path, losses=SoftTarget(output="heads.0")), module=HeadsStudent())
    callback = distil(tmp_path, losses=SoftTarget())
    fit(callback)
    assert asked(callback) == 0


def test_the_rehearsal_on_an_example_writes_nothing(tmp_path):
    student = Student()
    student.example_input_array = torch.zeros(2, 5)
    student.forward = student.net.forward
    callback = distil(tmp_path)
    fit(callback, module=student, max_epochs=1)
    assert asked(callback) == SIZE + 2
    (shard,) = tmp_path.glob("*.answers")
    assert shard.stat().st_size < SIZE * (6 * 4 + 16) + 6 * 250


def test_a_step_that_runs_twice_reads_what_it_has_asked_for(tmp_path):
    plain, cached = distil(None), distil(tmp_path)
    reference = fit(plain, SharpnessAware(), batches=loader(shuffle=False))
    student = fit(cached, SharpnessAware(), batches=loader(shuffle=False))
    assert same(dict(reference.state_dict()), dict(student.state_dict()))
    assert (asked(plain), asked(cached)) == (6 * SIZE, SIZE)
    assert json.loads((tmp_path / "complete.json").read_text()) == {"samples": SIZE}


def test_a_teacher_that_was_the_student_is_read_by_one_that_starts_alike(tmp_path):
    for times in (1, 0):
        callback = distil(tmp_path, teacher=Uncompressed())
        fit(callback)
        assert asked(callback) == times * SIZE


def test_a_mean_of_teachers_is_kept_with_the_share_of_each(tmp_path):
    def several(first):
        members = {"one": ModuleTeacher(module=Teacher()), "other": ModuleTeacher(module=Teacher(seed=8))}
        return Several(teachers=members, weights={"one": first, "other": 1.0})

    reference, student = fit(distil(None, several(3.0))), fit(distil(tmp_path, several(3.0)))
    assert fit(distil(tmp_path, several(3.0)))
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ArtefactError, match="are of another teacher"):
        fit(distil(tmp_path, several(2.0)))


@pytest.mark.parametrize("key", [None, 3])
def test_a_sample_is_found_by_what_the_teacher_is_given(key, tmp_path):
    x, y = data()
    view = data(seed=6)[0]
    repeated = torch.cat([x[:20], x[:20]])  # for the student, each sample is there twice

    def fitted(folder, seed=3, **settings):
        teacher = ModuleTeacher(module=Teacher(), input_map=FromBatch(keys=[2]))
        callback = distil(folder, teacher, key=key)
        dataset = TensorDataset(repeated, y, view, torch.arange(SIZE))
        return fit(callback, batches=loader(dataset, seed), **settings), callback

    fitted(tmp_path, seed=4, max_steps=3)
    reference, _ = fitted(None)
    student, callback = fitted(tmp_path)
    assert asked(callback) == SIZE - 24
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_teacher_that_follows_the_student_is_refused(tmp_path):
    with pytest.raises(ValueError, match="learns or follows the student answers otherwise after each step"):
        fit(distil(tmp_path, teacher=EMA()))
