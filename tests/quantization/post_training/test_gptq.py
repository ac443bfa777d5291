import pytest
import torch
from torch import nn

from lightning_optim.quantization import GPTQ, Symmetric
from lightning_optim.quantization.post_training.functional import compensated_rounding
from lightning_optim.quantization.post_training.grid import largest_of_each_scale
from support import calibrated


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def inputs(rows=200, width=8):
    return torch.randn(rows, width) @ torch.randn(width, width)  # correlated, or there is nothing to make up for


def by_inverses(weight, hessian, step):
    """Equation 2 of the paper, with the inverse of what is left found anew for each column."""
    weight = weight.double().clone()
    for place in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[place:, place:])
        rounded = (weight[:, place] / step).round() * step
        error = weight[:, place] - rounded
        weight[:, place:] -= torch.outer(error, inverse[0] / inverse[0, 0])
        weight[:, place] = rounded
    return weight


def test_each_column_makes_up_for_the_ones_before_it():
    weight, x, step = torch.randn(5, 8), inputs(), 0.25
    gram = x.t() @ x
    hessian = 2.0 * gram.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(8)
    found = compensated_rounding(
        weight, gram, lambda column, _: (column / step).round() * step, torch.zeros(5, 8, dtype=torch.bool), 0.01
    )
    assert torch.allclose(found.double(), by_inverses(weight, hessian, step), atol=1e-5)


@pytest.mark.parametrize(
    "quantizer",
    [
        Symmetric(bits=3),
        Symmetric(bits=3, granularity="tensor"),
        Symmetric(bits=3, granularity="group", group_size=8),
    ],
)
def test_outputs_are_nearer_than_those_of_rounding_to_the_nearest(quantizer):
    net = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    x = torch.randn(400, 6) @ torch.randn(6, 32) + 0.1 * torch.randn(400, 32)
    wanted, before = net(x), net[0].weight.detach().clone()
    simulator = calibrated(net, [x], quantizer)
    nearest = simulator.forward_of(net)(x)
    assert GPTQ().apply(net, simulator, [x[:250], x[250:]]) == ("0", "2")
    assert torch.equal(quantizer.weight_scale(before), quantizer.weight_scale(net[0].weight))
    compensated = calibrated(net, [x], quantizer).forward_of(net)(x)
    assert (compensated - wanted).square().mean() < 0.6 * (nearest - wanted).square().mean()


def test_weights_are_left_on_their_grid():
    quantizer, net, x = Symmetric(bits=4), nn.Sequential(nn.Linear(8, 6)).eval(), inputs()
    GPTQ().apply(net, calibrated(net, [x], quantizer), [x])
    whole = net[0].weight / quantizer.weight_scale(net[0].weight).view(-1, 1)
    assert torch.allclose(whole, whole.round(), atol=1e-4)


def test_the_largest_weight_of_each_group_stays():
    weight, scale = torch.tensor([[1.0, -2.0, 0.5, 0.1], [3.0, 3.0, 0.0, -1.0]]), torch.ones(2, 2)
    found = largest_of_each_scale(weight, scale)
    assert found.tolist() == [[False, True, True, False], [True, True, False, True]]


def test_a_scale_that_would_move_leaves_its_layer_alone():
    net, x = nn.Sequential(nn.Linear(8, 6)).eval(), inputs()
    with torch.no_grad():
        net[0].weight.uniform_(0.5, 1.0)  # of one sign, so that the sums of pairs make the scale
    before = net[0].weight.detach().clone()
    assert GPTQ().apply(net, calibrated(net, [x], Symmetric(bits=8)), [x]) == ()
    assert torch.equal(net[0].weight, before)


def test_inputs_that_are_always_zero_are_no_obstacle():
    net, x = nn.Sequential(nn.Linear(8, 6)).eval(), inputs()
    x[:, 2] = 0.0
    assert GPTQ().apply(net, calibrated(net, [x], Symmetric(bits=3)), [x]) == ("0",)
    assert net[0].weight.isfinite().all()


def test_no_damping_is_refused():
    with pytest.raises(ValueError, match="damping must be > 0"):
        GPTQ(damping=0.0)
