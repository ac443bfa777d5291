import itertools

import pytest
import torch
from torch import nn

from lightning_optim.quantization import AdaRound, PowerOfTwo, Symmetric
from lightning_optim.quantization.post_training.adaround import adaptive_rounding, output_error, rectified_sigmoid
from support import calibrated


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def convolutions():
    layers = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    more = (nn.Conv2d(8, 8, 3, stride=2, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    net = nn.Sequential(*layers, *more)
    net[1].running_var.uniform_(0.2, 3.0)
    return net.eval().requires_grad_(False)


def test_the_error_is_that_of_the_outputs():
    weight, rounded, x = torch.randn(1, 3, 6), torch.randn(1, 3, 6), torch.randn(50, 6)
    expected = (x @ rounded[0].t() - x @ weight[0].t()).square().mean(0)
    assert torch.allclose(output_error(weight, rounded, (x.t() @ x / 50)[None])[0], expected, rtol=1e-4)


def problem(width, rank):
    x = torch.randn(400, rank) @ torch.randn(rank, width) + 0.1 * torch.randn(400, width)
    return 3.0 * torch.randn(1, 10, width), (x.t() @ x / 400)[None]


def learned(weight, moments):
    pinned = torch.zeros_like(weight, dtype=torch.bool)
    found = adaptive_rounding(weight, moments, pinned, 300, 0.1, 10.0)
    assert bool(((found == weight.floor()) | (found == weight.floor() + 1)).all())
    return output_error(weight, found, moments), output_error(weight, weight.round(), moments)


def test_choices_lie_between_the_best_of_all_and_the_nearest():
    weight, moments = problem(width=8, rank=3)
    error, nearest = learned(weight, moments)
    ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    every = [output_error(row.expand_as(ups), row.floor() + ups, moments[0]).min() for row in weight[0]]
    best = torch.stack(every)
    assert bool((error[0] >= best * (1 - 1e-4)).all())
    assert bool((error <= nearest).all())
    assert error.sum() - best.sum() < 0.7 * (nearest.sum() - best.sum())


def test_wide_layers_gain_most():
    error, nearest = learned(*problem(width=64, rank=16))
    assert error.sum() < 0.3 * nearest.sum()


def test_pinned_weights_are_rounded_to_the_nearest():
    weight, moments = problem(width=16, rank=4)
    pinned = torch.rand(weight.shape) < 0.5
    found = adaptive_rounding(weight, moments, pinned, 50, 0.1, 10.0)
    assert torch.equal(found[pinned], weight.round()[pinned])
    assert not torch.equal(found, weight.round())


def test_rounding_is_soft_between_the_ends_and_hard_at_them():
    logits = torch.tensor([-4.0, -1.0, 0.5, 4.0])
    by_hand = [min(max(1.2 / (1.0 + 2.718281828 ** -float(v)) - 0.1, 0.0), 1.0) for v in logits]
    assert torch.allclose(rectified_sigmoid(logits), torch.tensor(by_hand))
    assert rectified_sigmoid(logits)[[0, 3]].tolist() == [0.0, 1.0]


def test_outputs_are_nearer_than_those_of_rounding_to_the_nearest():
    quantizer, net, x = Symmetric(bits=3), convolutions(), torch.randn(32, 3, 6, 6).cumsum(3)
    wanted = net(x)
    simulator = calibrated(net, [x], quantizer)
    nearest = simulator.forward_of(net)(x)
    scales = [quantizer.weight_scale(net[place].weight) for place in (0, 3, 6)]
    assert AdaRound().apply(net, simulator, [x[:20], x[20:]]) == ("0", "3", "6")
    for place, scale in zip((0, 3, 6), scales, strict=True):
        assert torch.allclose(quantizer.weight_scale(net[place].weight), scale)
        whole = net[place].weight.flatten(1) / scale.view(-1, 1)
        assert torch.allclose(whole, whole.round(), atol=1e-4)
    found = calibrated(net, [x], quantizer).forward_of(net)(x)
    assert (found - wanted).square().mean() < 0.7 * (nearest - wanted).square().mean()


def test_groups_of_inputs_keep_their_scales():
    quantizer = Symmetric(bits=3, granularity="group", group_size=4)
    net, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8)).eval(), torch.randn(200, 16).cumsum(1)
    wanted, simulator = net(x), calibrated(net, [x], quantizer)
    nearest, scales = simulator.forward_of(net)(x), [quantizer.weight_scale(net[place].weight) for place in (0, 2)]
    assert AdaRound(num_steps=150).apply(net, simulator, [x]) == ("0", "2")
    for place, scale in zip((0, 2), scales, strict=True):
        assert torch.allclose(quantizer.weight_scale(net[place].weight), scale)
        whole = net[place].weight.unflatten(1, (-1, 4)) / scale.unsqueeze(2)
        assert torch.allclose(whole, whole.round(), atol=1e-4)
    found = calibrated(net, [x], quantizer).forward_of(net)(x)
    assert (found - wanted).square().mean() < 0.8 * (nearest - wanted).square().mean()


def test_what_keeps_no_grid_is_left_alone():
    net, x = convolutions(), torch.randn(8, 3, 6, 6)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert AdaRound(num_steps=5).apply(net, calibrated(net, [x], PowerOfTwo(bits=4)), [x]) == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    one_scale = calibrated(net, [x], Symmetric(bits=4, granularity="tensor"))
    assert AdaRound(num_steps=5).apply(net, one_scale, [x]) == ("3", "6")  # the first has a batch norm


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"lr": 0.0}, {"strength": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        AdaRound(**settings)
