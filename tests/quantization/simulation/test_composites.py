import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.composites import opened
from lightning_optim.quantization.simulation.simulator import Simulator


class Attention(nn.Module):
    def __init__(self, needs_weights, **settings):
        super().__init__()
        self.needs_weights, self.attention = needs_weights, nn.MultiheadAttention(16, 4, batch_first=True, **settings)

    def forward(self, x, **masks):
        return self.attention(x, x, x, need_weights=self.needs_weights, **masks)[0]


class Projection(nn.Module):
    """A linear layer as transformers' models of the GPT family write it."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, 16), self.weight).view(*x.shape[:-1], 6)


class Products(nn.Module):
    """Products that are added to, of activations alone."""

    def forward(self, x):
        scores = torch.baddbmm(x, x, x.transpose(1, 2) @ x, beta=0.5, alpha=2.0)
        return torch.addmm(scores[0], x[0], scores[0, :16].T[:16]) + x[0].addmm(x[0], x[0, :16] @ x[0, :16].T, beta=0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def simulated(net, *batches, **kwargs):
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    run_calibration(simulator, net.eval(), [{"x": batch, **kwargs} if kwargs else batch for batch in batches])
    return simulator


def integer_operators(simulator):
    return [key for key, operator in simulator.plan.operators.items() if operator.is_integer and operator.macs]


@pytest.mark.parametrize("needs_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_opened_attention_is_the_same_function(needs_weights, training):
    net, x = Attention(needs_weights, dropout=0.1).train(training), torch.randn(2, 5, 16)
    attention = net.attention
    call = opened(F.multi_head_attention_forward, (), {})
    given = (x, x, x, 16, 4, attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.1)
    given += (attention.out_proj.weight, attention.out_proj.bias, training)
    results = []
    for function in (call, F.multi_head_attention_forward):
        torch.manual_seed(1)
        results.append(function(*given, need_weights=needs_weights)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("needs_weights", "keys"),
    [(False, {"linear", "linear#2"}), (True, {"linear", "bmm", "bmm#2", "linear#2"})],
)
def test_projections_of_attention_run_in_integers(needs_weights, keys):
    net, x = Attention(needs_weights), torch.randn(4, 5, 16)
    simulator = simulated(net, x, x)
    assert set(integer_operators(simulator)) == {f"attention:{key}" for key in keys}
    error = simulator.forward_of(net)(x) - net(x)
    assert 0.0 < error.norm() <= 0.03 * net(x).norm()


def test_separate_projections_and_cross_attention_run_in_integers():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True)

        def forward(self, x):
            memory = x[..., :8]
            return self.attention(x[:, :3], memory, memory, need_weights=False)[0]

    net, x = Cross(), torch.randn(4, 5, 16)
    assert len(integer_operators(simulated(net, x, x))) == 4


@pytest.mark.parametrize("training", [True, False])
def test_no_fast_path_of_an_encoder_layer_escapes(training):
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 2)
    x = torch.randn(4, 5, 16)
    simulator = simulated(net, x, x)
    assert len(integer_operators(simulator)) == 8
    with torch.no_grad():
        out = simulator.run(net.train(training), net.forward, (x,), {})
    assert not torch.allclose(out, net(x), atol=1e-4)
    assert torch.allclose(out, net(x), atol=0.2)


def test_a_product_with_a_weight_and_a_bias_is_a_linear_layer_with_a_scale_per_output():
    net, x = Projection(), torch.randn(4, 5, 16)
    simulator = simulated(net, x, x)
    assert integer_operators(simulator) == [":linear"]
    linear = nn.Linear(16, 6)
    linear.load_state_dict({"weight": net.weight.T, "bias": net.bias})
    assert torch.equal(simulator.forward_of(net)(x), simulated(linear, x, x).forward_of(linear)(x))


def test_other_products_that_are_added_to_are_products_and_sums():
    net, x = Products(), torch.randn(2, 16, 16)
    simulator = simulated(net, x, x)
    assert len(integer_operators(simulator)) == 5
    assert (simulator.forward_of(net)(x) - net(x)).norm() <= 0.05 * net(x).norm()


def test_an_excluded_attention_stays_as_it_is():
    net, x = nn.Sequential(nn.Linear(16, 16), Attention(False)), torch.randn(4, 5, 16)
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    simulator.place(frozenset({"1.attention", "1.attention.out_proj"}), {})
    run_calibration(simulator, net.eval(), [x, x])
    assert integer_operators(simulator) == ["0:linear"]


def test_gradients_of_an_opened_attention_reach_its_projections():
    net, x = Attention(False), torch.randn(4, 5, 16)
    simulator = simulated(net, x, x)
    simulator.run(net.train(), net.forward, (x,), {}).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
