"""Teachers of every kind in a fit: the student's weights equal those of the same written into the module."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher
from lightning_optim.distillation import (
    ExportedTeacher,
    FromBatch,
    Hint,
    MeanSquaredError,
    ModuleTeacher,
    ONNXFile,
    Several,
    Uncompressed,
)
from lightning_optim.distillation.teacher import pace
from lightning_optim.errors import SampleError, TargetError, TeacherError
from support import quiet, run_script, same, write_linear_onnx

pytestmark = pytest.mark.filterwarnings("ignore")


def net(seed, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


class Student(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net(0)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class ByHand(Student):
    """The same with a function from the batch to the teacher's answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        with torch.no_grad():
            answer = self.answer(batch)
        return F.cross_entropy(logits, batch[1]) * 0.5 + 0.5 * F.mse_loss(logits, answer)


def batches():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 6, generator=generator), torch.randint(0, 4, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(module, *callbacks, **settings):
    trainer = quiet(*callbacks, max_epochs=2, **settings)
    trainer.fit(module, batches())
    return trainer


def distil(teacher, **settings):
    return DistillationTeacher(teacher=teacher, losses=MeanSquaredError(), **settings)


def assert_learns_from(teacher, answer):
    student, reference = Student(), ByHand(answer)
    fit(student, distil(teacher))
    fit(reference)
    assert same(dict(student.net.state_dict()), dict(reference.net.state_dict()))
    assert not same(dict(student.net.state_dict()), dict(net(0).state_dict()))


def test_student_learns_from_the_weighted_mean_of_several():
    first, dense = net(5, width=16), net(0)
    teachers = {"large": ModuleTeacher(module=copy.deepcopy(first)), "dense": Uncompressed()}
    assert_learns_from(
        Several(teachers=teachers, weights={"large": 3, "dense": 1}),
        lambda batch: torch.stack([first(batch[0]) * 0.75, dense(batch[0]) * 0.25]).sum(0),
    )


def test_student_learns_from_an_onnx_file_which_gives_its_output_alone(tmp_path):
    layer = nn.Linear(6, 4)
    write_linear_onnx(tmp_path / "t.onnx", layer, flatten=False)
    teacher = ONNXFile(path=tmp_path / "t.onnx")
    run = teacher.load(lambda: None)
    assert_learns_from(teacher, lambda batch: run(batch[0]))
    student = Student()
    with pytest.raises(
        TargetError, match="loss 'look': '0' cannot be seen in the teacher: an ONNX file gives its output"
    ):
        fit(student, DistillationTeacher(teacher=teacher, losses={"look": Hint(student="net.0", teacher="0")}))
    assert same(dict(student.net.state_dict()), dict(net(0).state_dict()))


def test_student_learns_from_an_exported_program():
    trained = net(5, width=16).eval()
    program = torch.export.export(trained, (torch.ones(8, 6),))
    assert_learns_from(ExportedTeacher(program=program), lambda batch: trained(batch[0]))


class Padded(nn.Module):
    """Takes the student's inputs twice as long."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x)


def doubled(inputs, batch):
    return torch.cat([inputs.args[0], -inputs.args[0]], 1)


@pytest.mark.parametrize("precision", [None, "float32"])
def test_student_learns_from_a_teacher_of_other_inputs(precision):
    assert_learns_from(
        ModuleTeacher(module=Padded(), input_map=doubled, precision=precision),
        lambda batch: Padded()(torch.cat([batch[0], -batch[0]], 1)),
    )
    assert_learns_from(
        ModuleTeacher(module=nn.Embedding.from_pretrained(torch.eye(4)), input_map=FromBatch(keys=[1])),
        lambda batch: torch.eye(4)[batch[1]],
    )


def test_what_an_input_map_makes_and_the_teacher_does_not_take_is_refused_by_name():
    student = Student()
    with pytest.raises(
        TeacherError, match=r"what input_map \(doubled\) gives it, tensors of shape \[8, 12\]: .*; set its"
    ):
        fit(student, distil(ModuleTeacher(module=net(1), input_map=doubled)))
    assert same(dict(student.net.state_dict()), dict(net(0).state_dict()))


def test_batch_that_lacks_the_teachers_entry_is_refused_when_data_come_and_not_by_the_example():
    class Whole(Student):
        def forward(self, x):
            return self.net(x)

    student = Whole()
    student.example_input_array = torch.zeros(2, 6)
    fit(student, distil(ModuleTeacher(module=net(1), input_map=FromBatch(keys=[0]))))
    with pytest.raises(SampleError, match="the batch's 'image', but a list holds 0, 1"):
        fit(Student(), distil(ModuleTeacher(module=net(1), input_map=FromBatch(keys=["image"]))))


def test_slow_number_format_is_warned_about_once_in_a_fit(monkeypatch):
    times = iter([0.02, 0.01, 0.02, 0.01])
    monkeypatch.setattr(pace, "time_call", lambda call, rounds: next(times))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Student(), distil(ModuleTeacher(module=net(1), precision="bfloat16")))
    said = [str(each.message) for each in caught if "ms a batch" in str(each.message)]
    assert said == [
        "the teacher, a Sequential, takes 20 ms a batch in bfloat16 and 10 ms in float32 on this processor: set its "
        "precision to 'float32'"
    ]


def with_value(module, name, value):
    with torch.no_grad():
        module.get_parameter(name).view(-1)[0] = value
    return module


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_teacher_whose_weights_are_not_finite_is_refused(value):
    student, teacher = Student(), with_value(net(1), "2.weight", value)
    for given in (teacher, Several(teachers={"one": Uncompressed(), "bad": ModuleTeacher(module=teacher)})):
        with pytest.raises(ValueError, match=r"the teacher's weight '(bad\.)?2.weight' is not finite"):
            fit(student, distil(given))
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    normed = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    normed[1].running_var[0] = float("nan")
    with pytest.raises(ValueError, match=r"the teacher's buffer '1.running_var' holds NaN"):
        fit(student, distil(normed))


@pytest.mark.slow
def test_sharded_teacher_teaches_as_the_whole_one_on_two_ranks(tmp_path):
    done = run_script(Path(__file__).with_name("sharded_teacher.py"), cwd=tmp_path)
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert said == ["rank 0 equal", "rank 1 equal"], done.stdout
