import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)

    def forward(self, x, *, gain=1.0):
        return self.fc(self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3)) * gain)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def fresh():
    return Simulator(Symmetric(), Affine(), MinMax())


def test_ranges_are_those_of_the_floating_point_network(net):
    batches = [torch.randn(8, 1, 5, 5) for _ in range(4)]
    simulator = fresh()
    run_calibration(simulator, net, batches)
    net.eval()
    with torch.no_grad():
        hidden = [F.relu(net.norm(net.conv(x))) for x in batches]
    assert simulator.ranges.range_of("conv:conv2d")[1] == max(part.max() for part in hidden)
    assert simulator.ranges.range_of("conv:conv2d<0") == (torch.cat(batches).min(), torch.cat(batches).max())
    assert simulator.is_ready


def test_the_network_stays_as_it_is(net):
    net.fc.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    run_calibration(fresh(), net, [torch.randn(4, 1, 5, 5)])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert "forward" not in vars(net)
    assert net.norm.training
    assert not net.fc.training


@pytest.mark.parametrize("batch", [{"x": torch.ones(2, 1, 5, 5), "gain": 2.0}, (torch.ones(2, 1, 5, 5),)])
def test_inputs_may_be_named_or_several(net, batch):
    simulator = fresh()
    run_calibration(simulator, net, [batch])
    assert simulator.is_ready
    assert torch.equal(
        simulator.example[0][0] if simulator.example[0] else simulator.example[1]["x"], torch.ones(2, 1, 5, 5)
    )


def test_no_more_batches_are_drawn_than_wanted(net):
    loader = iter([torch.randn(2, 1, 5, 5)] * 5)
    run_calibration(fresh(), net, loader, num_batches=2)
    assert len(list(loader)) == 3


def test_no_data_is_refused(net):
    with pytest.raises(ValueError, match="never called the network: the data has no batch"):
        run_calibration(fresh(), net, [])
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        run_calibration(fresh(), net, [torch.ones(1, 1, 5, 5)], num_batches=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_is_not_finite_is_refused(net, bad):
    with pytest.raises(
        ValueError, match=r"gives NaN or infinities at 'conv:conv2d<0', which holds (NaN|infinities): calibrate"
    ):
        run_calibration(fresh(), net, [torch.ones(2, 1, 5, 5), torch.full((2, 1, 5, 5), bad)])
    assert "forward" not in vars(net)


def test_nothing_to_quantize_is_refused():
    with pytest.raises(ValueError, match="no operator that computes in integers"):
        run_calibration(fresh(), nn.GELU(), [torch.ones(2)])
