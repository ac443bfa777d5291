import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lightning_optim.export import export_onnx
from lightning_optim.export.onnx_file.kernels import count_kernels, inspect_kernels


@pytest.fixture
def integer_model(tmp_path):
    """Quantize, convolve, max-pool, dequantize: what a quantized network looks like to the runtime."""
    weight = np.random.default_rng(0).integers(-127, 127, (4, 2, 3, 3), dtype=np.int8)
    constants = {
        "scale": np.float32(0.1),
        "zero": np.uint8(3),
        "weight": weight,
        "weight_scale": np.full(4, 0.02, np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": np.zeros(4, np.int32),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node(
            "QLinearConv",
            ["q", "scale", "zero", "weight", "weight_scale", "weight_zero", "scale", "zero", "bias"],
            ["c"],
        ),
        node("MaxPool", ["c"], ["m"], kernel_shape=[2, 2]),
        node("DequantizeLinear", ["m", "scale", "zero"], ["d"]),
        node("Softmax", ["d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    path = tmp_path / "integer.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_integer_kernels_are_told_from_float_ones(integer_model):
    kernels = inspect_kernels(integer_model)
    assert sum(count for kind, count in kernels.integer.items() if "MaxPool" in kind) == 1
    assert kernels.integer["QLinearConv"] == 1
    assert len(kernels.integer) == 2
    assert kernels.floating == {"Softmax": 1}
    assert kernels.integer_fraction == pytest.approx(2 / 3)


def test_a_float_model_runs_no_integer_kernel(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    path = export_onnx(net, (torch.rand(2, 1, 6, 6),), tmp_path / "float.onnx")
    kernels = inspect_kernels(path)
    assert kernels.integer_fraction == 0.0
    assert kernels.floating["MaxPool"] == 1
    counted = count_kernels(path)
    assert counted["Conv"] == 1
    assert "Relu" not in counted  # the runtime fuses the activation into the convolution
