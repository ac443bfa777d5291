import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ExportError
from lightning_optim.export.lowering.program import capture_program
from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator
from support import PooledSums

QUANTIZED = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = QUANTIZED.quantize_per_tensor.default, QUANTIZED.dequantize_per_tensor.default


class Tokens(nn.Module):
    """Linear layers over tokens, and a parameter that is added."""

    def __init__(self):
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, 8, 2, 2), nn.Parameter(torch.randn(1, 16, 8))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        return (x + self.down(F.relu(self.up(x)))).mean(1)


def simulated(net, x, weight=None):
    simulator = Simulator(weight or Symmetric(), Affine(), MinMax())
    run_calibration(simulator, net.eval(), [x, x])
    return simulator


def calls(program, target):
    return [node for node in program.graph.nodes if node.target is target]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "weight"), [(PooledSums, Symmetric()), (Tokens, Symmetric(bits=4, granularity="tensor"))]
)
def test_the_program_computes_what_was_simulated_at_every_batch(kind, weight):
    net, x = kind(), torch.randn(40, 1, 8, 8)
    simulator = simulated(net, x, weight)
    program = capture_program(simulator, net, (x[:2],), {}, 32)
    run = program.module()
    for batch in (1, 3, 32):
        assert torch.equal(run(x[:batch]), simulator.forward_of(net)(x[:batch]))
    with pytest.raises(Exception, match="32"):
        run(x)


def test_a_relu_with_a_bound_keeps_it():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.Hardtanh(0.0, 1.0), nn.Flatten())
    x = 9.0 * torch.randn(8, 1, 8, 8)
    simulator = simulated(net, x)
    program = capture_program(simulator, net, (x,), {}, 8)
    assert torch.equal(program.module()(x), simulator.forward_of(net)(x))


def test_operators_stand_where_a_delegate_looks_for_them():
    net, x = PooledSums(), torch.randn(8, 1, 8, 8)
    program = capture_program(simulated(net, x), net, (x,), {}, 4)
    for node in calls(program, DEQUANTIZE):
        assert len(node.users) == 1
    (whole,) = calls(program, torch.ops.aten.cat.default)
    (rounded,) = whole.users
    assert rounded.target is QUANTIZE
    assert all(part.target is DEQUANTIZE and part.args[1:] == rounded.args[1:] for part in whole.args[0])
    (averaged,) = calls(program, torch.ops.aten.mean.dim)
    assert [user.target for user in averaged.users] == [QUANTIZE]
    (layer,) = calls(program, torch.ops.aten.linear.default)
    assert layer.args[0].target is DEQUANTIZE
    assert not calls(program, torch.ops.aten.copy.default)


def test_trained_weights_are_not_in_it():
    net, x = PooledSums(), torch.randn(8, 1, 8, 8)
    program = capture_program(simulated(net, x), net, (x,), {}, 4)
    names = {spec.target for spec in program.graph_signature.input_specs if spec.target is not None}
    assert all(name.startswith("backend.") for name in names)
    assert sum(value.numel() for value in program.state_dict.values() if value.is_floating_point()) <= 200


def test_a_batch_of_one_is_fixed():
    net, x = Tokens(), torch.randn(8, 1, 8, 8)
    simulator = simulated(net, x)
    program = capture_program(simulator, net, (x,), {}, 1)
    assert not program.range_constraints
    assert torch.equal(program.module()(x[:1]), simulator.forward_of(net)(x[:1]))


def test_what_cannot_be_captured_names_the_network():
    class Loops(Tokens):
        def forward(self, image):
            out = super().forward(image)
            return out if bool(out.sum() > 0) else -out

    net, x = Loops(), torch.randn(8, 1, 8, 8)
    simulator = simulated(net, x)
    with pytest.raises(ExportError, match="Loops cannot be captured"):
        capture_program(simulator, net, (x,), {}, 4)
