import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightning_optim.export import load_session
from lightning_optim.export.lowering.double_rounding import merge_double_rounding
from lightning_optim.export.onnx_file.kernels import count_kernels


def rounded_twice(**changed):
    """A sum whose second input is rounded twice in a row."""
    constants = {"s0": 0.1, "z0": 100, "s1": 0.2, "z1": 0, "s2": 0.25, "z2": 0, "s3": 0.3, "z3": 128} | changed
    kinds = {name: np.float32 if name.startswith("s") else np.uint8 for name in constants}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s0", "z0"], ["q0"]),
        node("DequantizeLinear", ["q0", "s0", "z0"], ["d0"]),
        node("QuantizeLinear", ["y", "s1", "z1"], ["q1"]),
        node("DequantizeLinear", ["q1", "s1", "z1"], ["d1"]),
        node("QuantizeLinear", ["d1", "s2", "z2"], ["q2"]),
        node("DequantizeLinear", ["q2", "s2", "z2"], ["d2"]),
        node("Add", ["d0", "d2"], ["sum"]),
        node("QuantizeLinear", ["sum", "s3", "z3"], ["q3"]),
        node("DequantizeLinear", ["q3", "s3", "z3"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(np.asarray(value, kinds[name]), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def kinds_of(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    "constants",
    [{}, {"s1": 0.25, "s2": 0.2}, {"z1": 17, "z2": 40}, {"s1": 0.03, "z1": 250, "s2": 0.4, "z2": 3}, {"z1": 128}],
)
def test_one_rounding_is_left_and_computes_what_the_runtime_makes_of_two(tmp_path, constants):
    """Since 1.24 ONNX Runtime merges such pairs rightly by itself; earlier ones refuse what they make of them."""
    model = rounded_twice(**constants)
    (tmp_path / "twice.onnx").write_bytes(model.SerializeToString())
    merge_double_rounding(model)
    assert kinds_of(model) == ["QuantizeLinear", "DequantizeLinear"] * 2 + ["Add", "QuantizeLinear", "DequantizeLinear"]
    onnx.checker.check_model(model)
    (tmp_path / "once.onnx").write_bytes(model.SerializeToString())
    assert count_kernels(tmp_path / "once.onnx")["QLinearAdd"] == 1
    x, y = (np.random.default_rng(0).random((2, 4, 4)) * 60 - 20).astype(np.float32)
    once = load_session(tmp_path / "once.onnx").run(x, y)[0]
    if tuple(map(int, pytest.importorskip("onnxruntime").__version__.split(".")[:2])) < (1, 24):
        pytest.skip("this ONNX Runtime cannot load a value that is rounded twice in a row")
    assert np.array_equal(once, load_session(tmp_path / "twice.onnx").run(x, y)[0])


@pytest.mark.parametrize("constants", [{"s1": np.float32([0.2] * 4), "z1": np.zeros(4)}, {"z1": 0, "z2": 255}])
def test_a_scale_per_channel_and_ranges_that_share_nothing_stay(constants):
    model = rounded_twice(**constants)
    before = kinds_of(model)
    merge_double_rounding(model)
    assert kinds_of(model) == before


def test_a_value_that_somebody_else_reads_stays():
    model = rounded_twice()
    model.graph.node.append(helper.make_node("Relu", ["d1"], ["other"]))
    before = kinds_of(model)
    merge_double_rounding(model)
    assert kinds_of(model) == before
