import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lightning_optim.export import load_session
from lightning_optim.export.onnx_file.strip import strip_model


def branching_model():
    """``x + 1`` where the flag is set, else ``x - offset``; both branches read the outer ``x`` by name."""

    def branch(kind, value, name):
        constant = numpy_helper.from_array(np.float32([value]), f"a_long_name_{name}")
        node = helper.make_node(kind, ["x", constant.name], [f"result_{name}"], f"module/{name}", "a trace")
        result = helper.make_tensor_value_info(f"result_{name}", TensorProto.FLOAT, ["batch"])
        return helper.make_graph([node], name, [], [result], [constant])

    choice = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branch("Add", 1.0, "then"), else_branch=branch("Sub", 3.0, "else")
    )
    inputs = [
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    model = helper.make_model(
        helper.make_graph([choice], "main", inputs, [output]), opset_imports=[helper.make_opsetid("", 21)]
    )
    model.ir_version = 10
    helper.set_model_props(model, {"trace": "x" * 1000})
    return model


def test_branches_still_find_the_outer_values(tmp_path):
    model = branching_model()
    strip_model(model)
    onnx.checker.check_model(model, full_check=True)
    session = load_session(_saved(model, tmp_path))
    x = np.float32([1.0, 2.0])
    assert session.run(np.bool_(True), x)[0].tolist() == [2.0, 3.0]
    assert session.run(np.bool_(False), x)[0].tolist() == [-2.0, -1.0]


def test_traces_inside_branches_go_too():
    model = branching_model()
    before = model.ByteSize()
    strip_model(model)
    text = model.SerializeToString()
    assert b"trace" not in text
    assert b"a_long_name" not in text
    assert len(text) < before - 1000


def test_a_short_name_never_meets_a_kept_one(tmp_path):
    one = numpy_helper.from_array(np.float32([1.0]), "long_one")
    nodes = [helper.make_node("Add", ["3", "long_one"], ["between"]), helper.make_node("Add", ["between", "4"], ["2"])]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in "342"}
    graph = helper.make_graph(nodes, "main", [values["3"], values["4"]], [values["2"]], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    strip_model(model)
    result = load_session(_saved(model, tmp_path)).run(np.float32([5.0]), np.float32([10.0]))
    assert result[0].tolist() == [16.0]


def _saved(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
