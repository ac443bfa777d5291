import math

import pytest
import torch
from torch import nn

from lightning_optim.graph import capture_network, couple
from lightning_optim.regularization import GroupLasso, Penalized


def test_a_group_is_all_that_goes_with_a_channel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    coupling = couple(capture_network(net, (torch.zeros(2, 1, 4, 4),)))
    parameters = dict(net.named_parameters())
    found = GroupLasso()(Penalized(weights={}, layers={}, groups=coupling.groups, parameters=parameters))
    by_hand = 0.0
    for channel in range(3):
        own = [*net[0].weight[channel].flatten().tolist(), net[0].bias[channel].item()]
        own += [net[1].weight[channel].item(), net[1].bias[channel].item()]
        own += net[4].weight[:, 4 * channel : 4 * channel + 4].flatten().tolist()
        assert len(own) == 9 + 1 + 2 + 8
        by_hand += math.sqrt(len(own)) * math.sqrt(sum(each * each for each in own))
    assert found.item() == pytest.approx(by_hand, rel=1e-5)
