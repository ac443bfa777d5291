import math

import pytest
import torch

from lightning_optim.quantization.simulation.sentinels import sentinel_bound


@pytest.mark.parametrize("value", [-1e4, -65504.0, -1e9, 1e9, torch.finfo(torch.float32).min, -math.inf, math.inf])
def test_what_masks_add_is_recognized_beside_any_other_value(value):
    x = torch.cat([torch.randn(1000) * 30.0, torch.full((3,), value) + torch.randn(3)])
    bound = sentinel_bound(x)
    assert bound is not None
    assert int((x.abs() >= bound).sum()) == 3


def test_masks_of_several_sizes_are_all_recognized():
    assert sentinel_bound(torch.tensor([5.0, 40.0, -1e4, -1e9, -math.inf])) == 1e4
    assert sentinel_bound(torch.tensor([0.0, -1e9, -2e9])) == 1e9


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(0),
        torch.zeros(4),
        torch.full((4,), -1e9),  # there is nothing else
        torch.full((4,), -math.inf),
        torch.tensor([1.0, 100.0]),  # far apart, but small
        torch.arange(5000.0),  # large, but not apart
        torch.randn(1000) * 1e6,
        torch.tensor([math.nan, 1.0]),
    ],
)
def test_other_values_are_no_sentinels(x):
    assert sentinel_bound(x) is None


def test_half_precision_is_read():
    assert sentinel_bound(torch.tensor([1.0, -65504.0], dtype=torch.float16)) == 65504.0
    assert sentinel_bound(torch.tensor([1.0, -3e38], dtype=torch.bfloat16)) > 1e38
