import pytest
import torch
from torch import nn

from lightning_optim.nas.recalibration import batch_norm_statistics, recalibrating, set_batch_norm_statistics


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


def test_statistics_can_be_kept_and_put_back():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2))
    net(torch.randn(4, 2))
    kept = batch_norm_statistics(net)
    assert kept.keys() == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(torch.randn(4, 2))
    assert not torch.equal(kept["0.running_mean"], net[0].running_mean)
    set_batch_norm_statistics(net, kept)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
