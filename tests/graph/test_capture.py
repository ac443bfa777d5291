"""Capturing leaves the model alone."""

import pytest
import torch
from torch import nn

from lightning_optim.errors import CaptureError
from lightning_optim.graph import capture_network


def test_the_model_keeps_its_mode_and_its_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    capture_network(net, (torch.randn(2, 3),))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_integer_attributes_come_along_and_metadata_of_torch_stay_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    captured = capture_network(net, (torch.randn(2, 3),))
    assert captured.attributes["0"] == {"in_features": 3, "out_features": 4}
    assert captured.shape_model is not None
    bare = torch.export.export(net.eval(), (torch.randn(2, 3),), strict=False)
    assert captured.program.graph_module.meta.keys() == bare.graph_module.meta.keys()


def test_what_cannot_be_captured_is_named():
    class Branch(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(CaptureError, match="cannot capture Branch"):
        capture_network(Branch(), (torch.randn(2),))
