"""DropBlock against its formula and its algorithm, worked pixel by pixel."""

import pytest
import torch

from lightning_optim.errors import SampleError
from lightning_optim.functional import block_rate
from lightning_optim.regularization import DropBlock


def test_the_rate_of_blocks_is_that_of_equation_1():
    keep, size, feature = 0.9, 7, 28
    gamma = (1 - keep) / size**2 * feature**2 / (feature - size + 1) ** 2
    assert block_rate(0.1, 7, 28, 28) == pytest.approx(gamma)


@pytest.mark.parametrize(("size", "height", "width"), [(1, 6, 6), (3, 9, 12), (4, 8, 8), (9, 5, 7)])
def test_regions_are_squares_inside_the_map_and_the_rest_grows(size, height, width):
    x = torch.ones(3, 2, height, width)
    y = DropBlock(block_size=size)(x, 0.2, torch.Generator().manual_seed(3))
    side = min(size, height, width)
    for number in range(6):
        zeros = {tuple(each) for each in (y.flatten(0, 1)[number] == 0).nonzero().tolist()}
        covered = set()
        for row in range(height - side + 1):
            for column in range(width - side + 1):
                block = {(row + i, column + j) for i in range(side) for j in range(side)}
                covered |= block if block <= zeros else set()
        assert covered == zeros  # each zero lies in a whole block of zeros
    left = [value for value in y.flatten().tolist() if value]
    assert left == pytest.approx([y.numel() / len(left)] * len(left))


def test_about_the_probability_is_dropped_and_the_mean_stays():
    x = torch.rand(64, 16, 28, 28, generator=torch.Generator().manual_seed(1))
    y = DropBlock()(x, 0.1, torch.Generator().manual_seed(0))
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.01)  # a little less, as blocks overlap
    assert float(y.mean()) == pytest.approx(float(x.mean()), rel=0.01)


def test_what_is_no_map_is_refused():
    with pytest.raises(SampleError, match=r"maps \[B, C, H, W\], got \[2, 3\]; use Dropout"):
        DropBlock()(torch.ones(2, 3), 0.1, torch.Generator())
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        DropBlock(block_size=0)


def test_a_map_that_is_dropped_as_a_whole_stays_finite():
    y = DropBlock(block_size=2)(torch.ones(1, 1, 2, 2), 0.999, torch.Generator().manual_seed(0))
    assert y.isfinite().all()
