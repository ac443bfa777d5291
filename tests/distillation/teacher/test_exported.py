import pytest
import torch
from torch import nn

from lightning_optim.distillation import Checkpoint, ExportedTeacher, Place, Safetensors
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.errors import ArtefactError, TeacherError
from lightning_optim.surgery.tap import ModuleCall

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def captured(net, dynamic=True):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    return torch.export.export(net, (torch.randn(4, 4),), dynamic_shapes=shapes)


def teacher_of(program, **settings):
    source = ExportedTeacher(program=program, **settings)
    frozen = source.freeze(source.load(lambda: None))
    frozen.place(torch.device("cpu"), torch.float32)
    return frozen


def test_program_answers_any_batch_as_its_network_does_and_is_seen_inside():
    net = Net().eval()
    teacher = teacher_of(captured(net))
    teacher.look_at([Place("norm")])
    x = torch.randn(7, 4)
    recording = teacher(ModuleCall((x,), {}, None))
    assert torch.equal(recording.call.output, net(x))
    assert torch.equal(recording.features[Place("norm")], net.norm(net.first(x)))
    assert not recording.call.output.requires_grad


def test_program_in_memory_is_left_as_it_is():
    program = captured(Net().eval())
    teacher_of(program, precision="bfloat16")
    assert program.state_dict["first.weight"].dtype is torch.float32
    assert program.state_dict["first.weight"].requires_grad


def test_another_number_format_is_computed_in():
    x = torch.randn(3, 4)
    assert teacher_of(captured(Net().eval()), precision="bfloat16")(ModuleCall((x,), {}, None)).call.output.dtype is (
        torch.bfloat16
    )


def test_fixed_batch_is_refused_with_its_size():
    teacher = teacher_of(captured(Net().eval(), dynamic=False))
    with pytest.raises(TeacherError, match=r"shape\[0\] to be equal to 4, but got 7") as caught:
        teacher(ModuleCall((torch.randn(7, 4),), {}, None))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decomposed", [False, True])
def test_program_captured_in_training_mode_is_refused(decomposed):
    program = captured(nn.Sequential(nn.Linear(4, 2), nn.Dropout()))
    with pytest.raises(ValueError, match=r"dropout.* trains in it.*capture it again after eval\(\)"):
        ExportedTeacher(program=program.run_decompositions() if decomposed else program)


def test_module_of_a_program_is_a_teacher_though_its_mode_cannot_be_set():
    net = Net().eval()
    teacher = FrozenTeacher(captured(net).module())
    x = torch.randn(3, 4)
    assert torch.equal(teacher(ModuleCall((x,), {}, None)).call.output, net(x))


def test_pt2_files_are_refused_and_onnx_and_safetensors_named(tmp_path):
    path = tmp_path / "t.pt2"
    torch.export.save(captured(Net().eval()), path)
    with pytest.raises(TypeError, match=r"got str: a .pt2 file is not read.* ONNX \(ONNXFile\) .* safetensors"):
        ExportedTeacher(program=str(path))
    with pytest.raises(TypeError, match=r"give what torch.export.export returns"):
        ExportedTeacher(program=nn.Linear(1, 1))
    for source in (Checkpoint, Safetensors):
        with pytest.raises(ArtefactError, match=r"t.pt2: a .pt2 file is not read.* ONNX \(ONNXFile\)"):
            source(path=path).load(Net)
