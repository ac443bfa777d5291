import pytest
import torch
from torch import nn

from lightning_optim.nas.recalibration import recalibrating


def test_statistics_are_the_average_over_the_batches_alone():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=0.1)
    norm(torch.randn(4, 3, 2, 2) * 5)
    norm.eval()
    batches = [torch.randn(4, 3, 2, 2) for _ in range(3)]
    with recalibrating(nn.Sequential(nn.Identity(), norm)):
        for batch in batches:
            norm(batch)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert (norm.momentum, norm.training) == (0.1, False)


def test_a_norm_without_statistics_is_left_alone():
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    with recalibrating(norm) as norms:
        assert norms == []
    assert norm.momentum == 0.1


def test_settings_come_back_after_an_exception():
    norm = nn.BatchNorm1d(2).eval()
    with pytest.raises(KeyError), recalibrating(norm):
        raise KeyError
    assert (norm.momentum, norm.training) == (0.1, False)
