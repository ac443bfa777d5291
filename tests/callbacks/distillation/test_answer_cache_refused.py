"""What a cache of answers refuses, with the reason and what to do, before the student has learned anything."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from lightning_optim import DistillationTeacher
from lightning_optim.distillation import (
    DIST,
    AnswerCache,
    AttentionTransfer,
    Hint,
    Loss,
    MeanSquaredError,
    ReverseKL,
    SoftTarget,
)
from lightning_optim.errors import ArtefactError, SampleError, TeacherError
from lightning_optim.schedule import Linear

spec = importlib.util.spec_from_file_location("cached_fits", Path(__file__).with_name("test_answer_cache.py"))
cached = importlib.util.module_from_spec(spec)
sys.modules["cached_fits"] = cached
spec.loader.exec_module(cached)
SIZE, Teacher, Student = cached.SIZE, cached.Teacher, cached.Student
distil, fit, loader, data, asked = cached.distil, cached.fit, cached.loader, cached.data, cached.asked
pytestmark = pytest.mark.filterwarnings("ignore")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(error, text, callback, folder, **settings):
    """Refused before a weight or a file has changed."""
    student, before = settings.pop("module", None) or Student(), content(folder)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(error, match=text):
        fit(callback, module=student, **settings)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert content(folder) == before


def order(dataset):
    return {} if isinstance(dataset, IterableDataset) else {"shuffle": False}


class Unsized(IterableDataset):
    def __iter__(self):
        return zip(*data(), strict=True)


@pytest.fixture
def written(tmp_path):
    fit(distil(tmp_path), max_epochs=1)
    return tmp_path


def test_other_weights_of_the_teacher(written):
    text = r"answers: the answers in it are of another teacher.* give another folder, delete the old one"
    refused(ArtefactError, text, distil(written, teacher=Teacher(seed=8)), written)
    changed = Teacher()
    with torch.no_grad():
        changed.second.bias[0] += 1e-4
    refused(ArtefactError, text, distil(written, teacher=changed), written)


def test_other_data(written):
    text = r"answers to other data: none of the first 8 samples is among them. Give another folder"
    refused(ArtefactError, text, distil(written), written, batches=loader(TensorDataset(*data(seed=5))))
    text = r"in another number format: give another folder"
    refused(ArtefactError, text, distil(written), written, precision="64-true")


def test_more_data_are_other_data_once_64_of_them_are_new(written):
    with pytest.raises(ArtefactError, match="none of the first 64 samples is among them"):
        fit(distil(written), batches=loader(TensorDataset(*data(100, seed=5))))


@pytest.mark.parametrize(
    "settings", [{"fast_dev_run": True}, {"limit_train_batches": 1}, {"overfit_batches": 1}], ids=str
)
def test_a_trial_on_a_few_batches_makes_no_complete_cache(settings, tmp_path):
    few = [TensorDataset(*data()), Unsized()]
    for number, dataset in enumerate(few):
        folder = tmp_path / str(number)
        fit(distil(folder), batches=loader(dataset, **order(dataset)), **settings)
        assert not (folder / "complete.json").exists()
        callback = distil(folder)
        fit(callback, batches=loader(dataset, **order(dataset)))
        assert asked(callback) == SIZE - 8
        assert (folder / "complete.json").exists()


def test_a_few_new_samples_are_no_other_data(written):
    x, y = data()
    more = TensorDataset(torch.cat([x, data(8, 7)[0]]), torch.cat([y, data(8, 7)[1]]))
    callback = distil(written)
    fit(callback, batches=loader(more))
    assert asked(callback) == 8


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"top_k": 2}, "written with top_k=null, and not with top_k=2; give another folder"),
        ({"key": 1}, "samples in it are found by inputs, and not by index: set key as it was"),
        ({"losses": Hint(student="net.first")}, "a loss needs 'at first', and its answers hold 'output'"),
    ],
)
def test_what_was_not_written(settings, text, written):
    refused(ArtefactError, text, distil(written, **settings), written)


def test_another_temperature_of_likeliest_classes(tmp_path):
    both = {"one": SoftTarget(temperature=1.0), "two": SoftTarget(temperature=2.0)}
    fit(distil(tmp_path, losses=both, top_k=2), max_epochs=1)
    callback = distil(tmp_path, losses=both["two"], top_k=2)
    fit(callback)
    assert asked(callback) == 0
    text = "its answers were written for temperature 1.0 and 2.0, and a loss has 4.0; give another folder"
    refused(ArtefactError, text, distil(tmp_path, losses=SoftTarget(temperature=4.0), top_k=2), tmp_path)
    refused(ArtefactError, "written with top_k=2, and not with top_k=3", distil(tmp_path, top_k=3), tmp_path)


def test_no_fewer_classes_than_there_are(tmp_path):
    refused(
        ValueError,
        "top_k=6 of 6 classes, which is no less than all: set top_k to null",
        distil(tmp_path, top_k=6),
        tmp_path,
    )


class Own(Loss):
    def __call__(self, student, teacher, context):
        return (student.output - teacher.output).abs().mean()


@pytest.mark.parametrize("loss", [AttentionTransfer(student="net.first"), Own()])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_loss_that_does_not_say_what_it_reads_is_named(loss, top_k):
    with pytest.raises(
        ValueError, match=rf"losses\['mine'\], a {type(loss).__name__}, reads .* distil without a cache"
    ):
        distil("nowhere", losses={"soft": SoftTarget(), "mine": loss}, top_k=top_k)


@pytest.mark.parametrize(
    "loss",
    [
        MeanSquaredError(),
        ReverseKL(),
        DIST(),
        Hint(student="net.first"),
        SoftTarget(standardize=True),
        SoftTarget(temperature=Linear(start=4.0, end=1.0)),
    ],
    ids=repr,
)
def test_a_loss_that_needs_all_numbers_is_named(loss):
    with pytest.raises(
        ValueError, match=rf"losses\['mine'\], a {type(loss).__name__}, needs all numbers .* top_k to null"
    ):
        distil("nowhere", losses={"soft": SoftTarget(), "mine": loss}, top_k=2)
    assert distil("nowhere", losses={"soft": SoftTarget(), "mine": loss}).cache == AnswerCache(folder="nowhere")


class Augmented(Dataset):
    """Some share of the samples is another each time, and each says which it is."""

    def __init__(self, share=1.0):
        self.share, self.num_read = share, 0
        self.x, self.y = data()

    def __len__(self):
        return SIZE

    def __getitem__(self, number):
        self.num_read += 1
        noise = 0.01 * self.num_read if number < self.share * SIZE else 0.0
        return self.x[number] + noise, self.y[number], number


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_augmentation_at_random_in_the_second_epoch(share, tmp_path):
    callback, batches = distil(tmp_path), loader(Augmented(share))
    text = r"of this epoch are not in the cache .* Take augmentation at random out, .* set key to where the batch holds"
    with pytest.raises(ArtefactError, match=text):
        fit(callback, batches=batches)
    assert SIZE < batches.dataset.num_read <= 2 * SIZE
    other = distil(tmp_path / "by_index", key=2)
    fit(other, batches=loader(Augmented(share)))
    assert asked(other) == SIZE


@pytest.mark.parametrize(
    "settings", [{"limit_train_batches": 2}, {"batches": {"batch_size": 16, "drop_last": True}}], ids=str
)
def test_samples_that_an_epoch_has_left_out_are_no_augmentation(settings, tmp_path):
    callback = distil(tmp_path)
    batches = loader(**settings.pop("batches", {}))
    fit(callback, batches=batches, max_epochs=8, **settings)
    assert 32 < asked(callback) <= SIZE


def test_a_key_that_leads_to_no_index_is_refused(tmp_path):
    text = r"the cache's key={} must lead to an integer for each of the 8 samples of a batch, got {}"
    for key, came in ((0, r"torch.float32 \[8, 5\]"), ("index", "NoneType")):
        refused(SampleError, text.format(repr(key), came), distil(tmp_path, key=key), tmp_path)


class Recurrent(nn.Module):
    """Reads a batch as if its first axis was that of time."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 6)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Sequences(Student):
    def __init__(self):
        super().__init__()
        self.net = Recurrent()

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()


def test_a_teacher_whose_batch_axis_is_the_second(tmp_path):
    batches = loader(TensorDataset(torch.randn(24, 5, 3)))
    losses = SoftTarget(class_dim=-1)
    text = "answers otherwise to the same sample among others, .* the batch axis must be the first of all inputs"
    refused(TeacherError, text, distil(tmp_path, Recurrent(), losses), tmp_path, module=Sequences(), batches=batches)


def test_a_transposed_network_of_the_same_layers_is_not_refused(tmp_path):
    class Turned(Recurrent):
        def forward(self, x):
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    student = Sequences()
    student.net = Turned()
    batches = loader(TensorDataset(torch.randn(24, 5, 3)), shuffle=False)
    fit(distil(tmp_path, Turned(), SoftTarget(class_dim=-1)), module=student, batches=batches)


class Pooled(Teacher):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


def test_an_answer_that_is_not_by_sample(tmp_path):
    text = r"the teacher's output has shape \[1, 6\] for 8 samples: answers are kept by sample"
    refused(TeacherError, text, distil(tmp_path, Pooled()), tmp_path)


def test_an_answer_that_is_not_finite(tmp_path):
    broken = Teacher()
    nn.init.constant_(broken.first.bias, 3e38)
    nn.init.constant_(broken.second.weight, 2.0)
    for top_k in (None, 2):
        text = "the teacher's output holds numbers that are not finite"
        refused(TeacherError, text, distil(tmp_path, broken, top_k=top_k), tmp_path)


def test_a_teacher_of_other_classes(tmp_path):
    refused(ValueError, "of 7 classes, the student has 6", distil(tmp_path, Teacher(7), top_k=2), tmp_path)
    refused(ValueError, r"7 and 6 classes along axis", distil(tmp_path, Teacher(7)), tmp_path)


def test_settings_out_of_range(tmp_path):
    (tmp_path / "file").write_text("")
    for settings, text in (({"top_k": 0}, "top_k must be at least 1"), ({"folder": tmp_path / "file"}, "is a file")):
        with pytest.raises(ValueError, match=text):
            AnswerCache(**{"folder": tmp_path} | settings)
    with pytest.raises(TypeError, match="cache must be an AnswerCache or None, got the string 'answers'"):
        DistillationTeacher(teacher=Teacher(), cache="answers")


def test_a_small_share_of_the_likeliest_classes_is_said(tmp_path):
    loss = SoftTarget(temperature=100.0)
    with pytest.warns(
        UserWarning, match=r"at temperature 100.0, top_k=1 classes hold 17% of the teacher's probability"
    ):
        fit(distil(tmp_path, losses=loss, top_k=1), max_epochs=1)
