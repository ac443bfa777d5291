import torch
from torch import nn

from lightning_optim.export import ONNXRuntimeEngine


def test_a_network_of_more_work_takes_longer_in_the_runtime():
    def net(width):
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8)).eval()

    inputs = (torch.ones(32, 64),)
    assert 0.0 < ONNXRuntimeEngine()(net(16), inputs, {}) < ONNXRuntimeEngine()(net(2048), inputs, {})
