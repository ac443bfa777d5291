import itertools

import pytest
import torch
from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export import check_parity, export_onnx

POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@pytest.mark.parametrize(("dims", "padding"), [*itertools.product((1, 2, 3), (0, 1))])
def test_windows_that_reach_beyond_the_image_count_as_in_torch(dims, padding, tmp_path):
    pool, x = POOLS[dims - 1](3, 2, padding, ceil_mode=True), torch.rand(3, 2, *[8] * dims)
    parity = check_parity(pool, export_onnx(pool, (x,), tmp_path / "pool.onnx"), [x, x[:1]])
    assert parity.relative_error < 1e-6


@pytest.mark.parametrize(("dims", "padding", "counts"), [*itertools.product((2, 3), (0, 1), (True, False))])
def test_a_divisor_is_kept(dims, padding, counts, tmp_path):
    x = torch.rand(3, 2, *[8] * dims)
    pool = POOLS[dims - 1](3, 2, padding, count_include_pad=counts, divisor_override=5)
    parity = check_parity(pool, export_onnx(pool, (x,), tmp_path / "pool.onnx"), [x, x[:1]])
    assert parity.relative_error < 1e-6


def test_a_divisor_of_windows_that_reach_beyond_the_image_is_refused(tmp_path):
    pool = nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5)
    with pytest.raises(ExportError, match="both divisor_override and ceil_mode"):
        export_onnx(pool, (torch.rand(3, 2, 8, 8),), tmp_path / "pool.onnx")
