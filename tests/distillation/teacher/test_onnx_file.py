import numpy as np
import pytest
import torch
from torch import nn

from lightning_optim.distillation import ONNXFile
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.errors import ArtefactError, TeacherError
from lightning_optim.surgery.tap import ModuleCall
from support import write_linear_onnx

onnx = pytest.importorskip("onnx")
helper, Proto = onnx.helper, onnx.TensorProto


def write_two_inputs(path):
    """Writes ``total = left + right`` and ``kept = ids``, whose batch is 2."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["left", "right"], ["total"]), helper.make_node("Identity", ["ids"], ["kept"])],
        "two",
        [
            helper.make_tensor_value_info("left", Proto.FLOAT, [2, "n"]),
            helper.make_tensor_value_info("ids", Proto.INT64, [2]),
            helper.make_tensor_value_info("right", Proto.FLOAT, [2, "n"]),
        ],
        [
            helper.make_tensor_value_info("total", Proto.FLOAT, [2, "n"]),
            helper.make_tensor_value_info("kept", Proto.INT64, [2]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def teacher_at(path):
    source = ONNXFile(path=path)
    frozen = source.freeze(source.load(lambda: None))
    frozen.place(torch.device("cpu"), torch.float32)
    return frozen


@pytest.fixture
def two(tmp_path):
    write_two_inputs(tmp_path / "two.onnx")
    return teacher_at(tmp_path / "two.onnx")


def test_file_computes_what_numpy_does_for_any_batch_and_number_format(tmp_path):
    layer = nn.Linear(4, 3)
    write_linear_onnx(tmp_path / "t.onnx", layer, flatten=False)
    teacher = teacher_at(str(tmp_path / "t.onnx"))
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    for batch, kind in ((5, torch.float32), (2, torch.float64), (1, torch.bfloat16)):
        x = torch.randn(batch, 4, requires_grad=True).to(kind)
        answer = teacher(ModuleCall((x,), {}, None)).call.output
        expected = x.detach().float().numpy() @ weight.T + bias
        assert answer.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert not answer.requires_grad


def test_inputs_are_matched_by_name_and_then_in_order(two):
    left, right, ids = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.arange(2)
    for call in (
        ModuleCall((left, ids, right), {}, None),
        ModuleCall((left, ids), {"right": right}, None),
        ModuleCall((ids,), {"right": right, "left": left, "other": None}, None),
        ModuleCall((), {"ids": ids.to(torch.int32), "right": right, "left": left}, None),
    ):
        answer = two(call).call.output
        assert answer["total"].tolist() == np.full((2, 3), 3.0).tolist()
        assert answer["kept"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.ones(2, 3),), {}, r"takes \['left', 'ids', 'right'\], got Tensor: choose by input_map"),
        ((torch.ones(2, 3),) * 4, {}, "got Tensor, Tensor, Tensor, Tensor"),
        ((torch.ones(2, 3), torch.arange(2), torch.ones(2, 3)), {"labels": torch.ones(2)}, "Tensor, 'labels'"),
        (
            (torch.ones(2, 3), torch.ones(2), torch.ones(2, 3)),
            {},
            r"'ids' of the ONNX file is a tensor\(int64\), got .*float32",
        ),
        (
            (torch.ones(5, 3), torch.arange(2), torch.ones(2, 3)),
            {},
            r"\[2, 'n'\], got \[5, 3\]: .*dynamic batch, or set",
        ),
        ((torch.ones(2), torch.arange(2), torch.ones(2, 3)), {}, r"\[2, 'n'\], got \[2\]"),
    ],
)
def test_inputs_of_another_kind_are_refused_in_one_line(two, args, kwargs, message):
    with pytest.raises(TeacherError, match=message) as caught:
        two(ModuleCall(args, kwargs, None))
    assert "\n" not in str(caught.value)


def test_files_are_told_apart_and_broken_ones_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        write_linear_onnx(tmp_path / f"{name}.onnx", nn.Linear(2, 2))
    assert teacher_at(tmp_path / "a.onnx").digest() != teacher_at(tmp_path / "b.onnx").digest()
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(ArtefactError, match=r"a.onnx cannot be run by ONNX Runtime") as caught:
        teacher_at(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtefactError, match="does not exist"):
        teacher_at(tmp_path)


def test_network_is_frozen_as_any_other_is(two):
    assert isinstance(two, FrozenTeacher)
    assert not two.module.training
    assert not list(two.module.parameters())
