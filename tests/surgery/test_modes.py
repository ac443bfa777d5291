import pytest
import torch
from torch import nn

from lightning_optim.surgery.modes import evaluating


def test_each_module_comes_back_in_its_own_mode_even_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval())
    before, inside = [part.training for part in net.modules()], []

    def fail():
        with evaluating(net):
            inside.extend([any(part.training for part in net.modules()), torch.is_grad_enabled()])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert inside == [False, False]
    assert [part.training for part in net.modules()] == before
    assert torch.is_grad_enabled()


def test_a_frozen_part_stays_in_evaluation_inside_a_training_whole():
    net = nn.Sequential(nn.BatchNorm1d(2).eval())
    with evaluating(net):
        pass
    assert net.training
    assert not net[0].training
