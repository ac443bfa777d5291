import torch
from torch import nn

from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.surgery.tap import ModuleCall


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x, *, scale):
        return self.norm(self.layer(x)) * scale


def test_answer_has_no_gradient_and_statistics_stay():
    teacher = FrozenTeacher(Net())
    call = ModuleCall((torch.randn(8, 4, requires_grad=True),), {"scale": 2.0}, None)
    answer = teacher(call).call
    assert not answer.output.requires_grad
    assert answer.kwargs == {"scale": 2.0}
    assert int(teacher.module.norm.num_batches_tracked) == 0
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())


def test_own_precision_holds_under_autocast():
    teacher = FrozenTeacher(Net(), "float32")
    teacher.place(torch.device("cpu"), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher(ModuleCall((torch.randn(8, 4),), {"scale": 1.0}, None)).call.output.dtype is torch.float32


def test_bfloat16_teacher_takes_float32_inputs_and_integers_as_they_are():
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, ids, scale):
            return self.table(ids) * scale

    teacher = FrozenTeacher(Embed(), "bfloat16")
    teacher.place(torch.device("cpu"), torch.float32)
    output = teacher(ModuleCall((torch.arange(5), torch.ones(1)), {}, None)).call.output
    assert output.dtype is torch.bfloat16


def test_teacher_follows_the_students_number_format():
    teacher = FrozenTeacher(Net())
    teacher.place(torch.device("cpu"), torch.float64)
    assert (
        teacher(ModuleCall((torch.randn(8, 4, dtype=torch.float64),), {"scale": 1.0}, None)).call.output.dtype
        is torch.float64
    )


def test_digest_tells_weights_apart():
    first, second = FrozenTeacher(Net()), FrozenTeacher(Net())
    assert first.digest() != second.digest()
    second.module.load_state_dict(first.module.state_dict())
    assert first.digest() == second.digest()
