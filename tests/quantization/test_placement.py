import copy

import pytest
import torch
from torch import nn

from lightning_optim.quantization.observer.min_max import MinMax
from lightning_optim.quantization.quantizer.affine import Affine
from lightning_optim.quantization.quantizer.symmetric import Symmetric
from lightning_optim.quantization.simulator import Simulator


@pytest.mark.parametrize("bound", [nn.ReLU6, lambda inplace: nn.Hardtanh(0.0, 6.0, inplace=inplace)])
def test_a_bounded_relu_in_place_has_the_gradients_of_one_that_is_not(bound):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)
    x, gradients = 5 * torch.randn(4, 1, 8, 8), {}
    for inplace in (False, True):
        first, norm, last = copy.deepcopy(layers)
        net = nn.Sequential(first, norm, bound(inplace=inplace), last)
        simulator = Simulator(Symmetric(), Affine(), MinMax())
        simulator.is_observing = simulator.folds_batch_norm = True
        for _ in range(4):
            net.zero_grad()
            simulator.run(net, net.forward, (x,), {}).square().sum().backward()
            simulator.finish_batch()
        gradients[inplace] = [parameter.grad.clone() for parameter in net.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(*gradients.values(), strict=True))
    assert gradients[True][0].abs().sum() > 0
