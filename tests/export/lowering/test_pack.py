import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightning_optim.export import load_session
from lightning_optim.export.lowering.pack import pack_weights
from lightning_optim.export.onnx_file.integer_widths import narrowest_integers
from lightning_optim.export.onnx_file.kernels import count_kernels


def convolution(low, high, size=16):
    """A quantized convolution whose weights lie between two integers, both of which occur."""
    generator = np.random.default_rng(0)
    weight = generator.integers(low, high + 1, (size, size, 3, 3)).astype(np.int8)
    weight.flat[0], weight.flat[1] = low, high
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(5),
        "weight": weight,
        "weight_scale": np.full(size, 0.01, np.float32),
        "weight_zero": np.zeros(size, np.int8),
        "out_scale": np.float32(0.1),
        "out_zero": np.uint8(120),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0),
        node("Conv", ["d", "w"], ["c"]),
        node("QuantizeLinear", ["c", "out_scale", "out_zero"], ["r"]),
        node("DequantizeLinear", ["r", "out_scale", "out_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def save(model, path):
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("low", "high", "kind", "share"),
    [
        (-1, 1, TensorProto.INT2, 0.25),
        (-2, 1, TensorProto.INT2, 0.25),
        (-2, 2, TensorProto.INT4, 0.5),
        (-8, 7, TensorProto.INT4, 0.5),
        (-8, 8, TensorProto.INT8, 1.0),
        (-127, 127, TensorProto.INT8, 1.0),
    ],
)
def test_a_weight_takes_the_bits_that_its_integers_need_and_computes_the_same(tmp_path, low, high, kind, share):
    if kind == TensorProto.INT2 and narrowest_integers() > 2:
        pytest.skip("this ONNX Runtime has no 2-bit integers")
    model = convolution(low, high)
    plain = save(model, tmp_path / "plain.onnx")
    pack_weights(model)
    packed = save(model, tmp_path / "packed.onnx")
    weight = next(each for each in model.graph.initializer if each.name == "weight")
    assert weight.data_type == kind
    assert len(weight.raw_data) == 16 * 16 * 9 * share
    assert model.opset_import[0].version == (25 if kind == TensorProto.INT2 else 21)
    assert count_kernels(packed) == count_kernels(plain)
    assert count_kernels(packed)["QLinearConv"] == 1
    x = np.random.default_rng(1).random((3, 16, 8, 8), dtype=np.float32)
    assert np.array_equal(load_session(plain).run(x)[0], load_session(packed).run(x)[0])


def test_a_runtime_without_2_bits_gets_4_and_one_without_4_gets_8():
    for narrowest, kind in ((4, TensorProto.INT4), (8, TensorProto.INT8)):
        model = convolution(-1, 1)
        pack_weights(model, narrowest)
        assert next(each for each in model.graph.initializer if each.name == "weight").data_type == kind
        assert model.opset_import[0].version == 21


def test_what_is_too_small_or_read_otherwise_stays():
    small = convolution(-1, 1, size=2)
    pack_weights(small)
    assert not any(node.op_type == "Cast" for node in small.graph.node)
    shared = convolution(-1, 1)
    shared.graph.node.append(helper.make_node("Identity", ["weight"], ["other"]))
    pack_weights(shared)
    assert next(each for each in shared.graph.initializer if each.name == "weight").data_type == TensorProto.INT8
