import pytest
import torch

from lightning_optim.quantization.simulation.integer_form import (
    upper_bound,
    why_add_is_float,
    why_concatenate_is_float,
    why_layer_is_float,
    why_matmul_is_float,
    why_pool_is_float,
    why_relu_is_float,
)

REAL, WHOLE, IMAGE = torch.ones(2, 2), torch.ones(2, 2).long(), torch.ones(2, 3, 4, 4)
CALLS = [
    (why_layer_is_float, "linear", (REAL, REAL), {}, True),
    (why_layer_is_float, "linear", (), {"weight": REAL}, False),
    (why_layer_is_float, "conv2d", (WHOLE, REAL), {}, False),
    (why_matmul_is_float, "matmul", (REAL, REAL), {}, True),
    (why_matmul_is_float, "matmul", (REAL,), {"other": REAL}, False),
    (why_add_is_float, "add", (REAL, REAL), {"alpha": 1}, True),
    (why_add_is_float, "add", (REAL, WHOLE), {}, False),
    (why_add_is_float, "add", (REAL, 1.0), {}, False),
    (why_add_is_float, "add", (REAL, REAL), {"alpha": 2}, False),
    (why_pool_is_float, "adaptive_avg_pool2d", (IMAGE, 1), {}, True),
    (why_pool_is_float, "adaptive_avg_pool2d", (IMAGE,), {"output_size": (3, 3)}, False),
    (why_pool_is_float, "adaptive_avg_pool2d", (IMAGE[0], 1), {}, False),
    (why_pool_is_float, "adaptive_avg_pool1d", (IMAGE[0],), {"output_size": 1}, True),
    (why_pool_is_float, "adaptive_avg_pool1d", (IMAGE[0], 2), {}, False),
    (why_pool_is_float, "adaptive_avg_pool3d", (IMAGE.unsqueeze(2), (1, 1, 1)), {}, True),
    (why_pool_is_float, "avg_pool1d", (IMAGE[0], 2), {}, False),
    (why_pool_is_float, "mean", (IMAGE.unsqueeze(2), (2, 3, 4)), {}, True),
    (why_pool_is_float, "mean", (IMAGE[0], -1), {}, False),
    (why_pool_is_float, "avg_pool2d", (IMAGE, 2), {}, True),
    (why_pool_is_float, "avg_pool2d", (IMAGE[0], 2), {}, False),
    (why_pool_is_float, "mean", (IMAGE, (-1, -2)), {}, True),
    (why_pool_is_float, "mean", (IMAGE[0],), {"dim": 1}, True),
    (why_pool_is_float, "mean", (IMAGE, 1), {}, False),
    (why_pool_is_float, "mean", (IMAGE,), {}, False),
    (why_pool_is_float, "mean", (IMAGE, (2, 3)), {"dtype": torch.float64}, False),
    (why_concatenate_is_float, "cat", ([REAL, REAL],), {}, True),
    (why_concatenate_is_float, "cat", ([REAL, WHOLE],), {}, False),
    (why_relu_is_float, "relu6", (REAL,), {}, True),
    (why_relu_is_float, "hardtanh", (REAL, 0.0, 4.0), {}, True),
    (why_relu_is_float, "hardtanh", (REAL,), {}, False),
]


@pytest.mark.parametrize(("why_float", "name", "args", "kwargs", "has_form"), CALLS)
def test_a_call_without_an_integer_form_has_a_reason(why_float, name, args, kwargs, has_form):
    assert (why_float(name, args, kwargs) == "") is has_form


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "upper"),
    [
        ("relu", (REAL,), {}, None),
        ("relu6", (REAL,), {}, 6.0),
        ("hardtanh", (REAL, 0.0), {}, 1.0),
        ("hardtanh_", (REAL,), {"min_val": 0, "max_val": 4}, 4.0),
    ],
)
def test_a_relu_levels_off_at_its_upper_bound(name, args, kwargs, upper):
    assert upper_bound(name, args, kwargs) == upper
