"""How a teacher is run: compiled, elsewhere, sharded, and in a number format that is slow here."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_optim.distillation import EMA, ModuleTeacher, Place
from lightning_optim.distillation.teacher import pace
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.errors import TapError
from lightning_optim.surgery import Inputs
from lightning_optim.surgery.tap import ModuleCall


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.norm.running_mean.fill_(0.3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


CALL = ModuleCall((torch.randn(5, 4, generator=torch.Generator().manual_seed(1)),), {}, None)
CPU = torch.device("cpu")


def run_as(module, **settings):
    source = ModuleTeacher(module=module, **settings)
    frozen = source.freeze(source.load(lambda: None))
    frozen.place(CPU, torch.float32)
    frozen.look_at([Place("norm")])
    return frozen


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", True])
def test_compiled_teacher_answers_and_is_seen_inside_as_the_plain_one(backend, fresh_compiler):
    plain, compiled = run_as(Net()), run_as(Net(), compile=backend)
    for _ in range(2):
        expected, found = plain(CALL), compiled(CALL)
        torch.testing.assert_close(found.call.output, expected.call.output)
        torch.testing.assert_close(found.features[Place("norm")], expected.features[Place("norm")])
        compiled.release()
        compiled.look_at([Place("norm")])  # of another fit


def test_compiled_average_answers_with_its_new_weights(fresh_compiler):
    student = Net()
    source = EMA(decay=0.5, compile=True)
    frozen = source.freeze(source.load(lambda: student))
    frozen.place(CPU, torch.float32)
    frozen.look_at([])
    frozen.copies[0].begin(student)
    for _ in range(3):
        with torch.no_grad():
            expected = frozen.module(*CALL.args)
            torch.testing.assert_close(frozen(CALL).call.output, expected)
            student.first.weight.add_(1.0)
        frozen.copies[0].follow_step(student)


def test_module_that_is_compiled_already_is_seen_inside_or_refused_by_name(fresh_compiler):
    compiled = torch.compile(Net(), backend="eager")
    frozen = run_as(compiled)
    assert torch.equal(frozen(CALL).features[Place("norm")], run_as(Net())(CALL).features[Place("norm")])
    torch._dynamo.reset()
    late = torch.compile(Net().eval().requires_grad_(False), backend="eager")
    with torch.no_grad():
        late(*CALL.args)
    with pytest.raises(TapError, match=r"no forward pass went through 'norm' .* compiled before the tap was set"):
        run_as(late)(CALL)


def test_device_of_its_own_takes_inputs_and_gives_answers_back():
    frozen = run_as(Net(), device="cpu")
    recording = frozen(CALL)
    expected = run_as(Net())(CALL)
    assert torch.equal(recording.call.output, expected.call.output)
    assert torch.equal(recording.features[Place("norm")], expected.features[Place("norm")])
    with pytest.raises(ValueError, match=r"device must be a device of torch, .* got 'gpu'"):
        ModuleTeacher(module=Net(), device="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no other device is here")
def test_answers_of_another_device_lie_where_the_inputs_do():
    frozen = run_as(Net(), device="cuda")
    recording = frozen(CALL)
    assert next(frozen.module.parameters()).device.type == "cuda"
    assert recording.call.output.device == recording.features[Place("norm")].device == CPU
    torch.testing.assert_close(recording.call.output, run_as(Net())(CALL).call.output, rtol=1e-3, atol=1e-4)


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_teacher_stays_as_it_is_and_answers(mesh):
    net = Net()
    for layer in (net.first, net.last, net):
        fully_shard(layer, mesh=mesh)
    frozen = run_as(net)
    plain = run_as(Net())
    for _ in range(2):
        found, expected = frozen(CALL), plain(CALL)
        assert torch.equal(found.call.output, expected.call.output)
        assert torch.equal(found.features[Place("norm")], expected.features[Place("norm")])
    assert frozen.digest() == pytest.approx(plain.digest())
    for settings in ({"precision": "bfloat16"}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="leave out precision and device, and give fully_shard"):
            run_as(net, **settings)


@pytest.mark.parametrize(("own", "exact"), [(0.0123, 0.0045), (0.004, 0.0045)])
def test_number_format_that_is_slower_here_is_told_with_both_times(own, exact, monkeypatch):
    times = iter([own, exact])
    monkeypatch.setattr(pace, "time_call", lambda call, rounds: call() is not None and next(times))
    frozen = run_as(Net(), precision="bfloat16")
    before = {name: value.clone() for name, value in frozen.module.state_dict().items()}
    said = frozen.advice(CALL, None)
    if own > exact:
        (text,) = said
        assert text == (
            "the teacher, a Net, takes 12.3 ms a batch in bfloat16 and 4.5 ms in float32 on this processor: set its "
            "precision to 'float32'"
        )
    else:
        assert said == []
    assert all(torch.equal(value, before[name]) for name, value in frozen.module.state_dict().items())


@pytest.mark.parametrize("precision", [None, "float32"])
def test_number_format_of_the_student_is_not_timed(precision, monkeypatch):
    monkeypatch.setattr(pace, "time_call", lambda call, rounds: pytest.fail("timed"))
    assert run_as(Net(), precision=precision).advice(CALL, None) == []


def test_both_number_formats_are_really_timed():
    frozen = FrozenTeacher(Net(), "float16")
    with torch.no_grad():
        found = pace.slower_than_float32(frozen.module.half(), Inputs(CALL.args), torch.float16)
    assert found is None or (found[0] > found[1] > 0)
