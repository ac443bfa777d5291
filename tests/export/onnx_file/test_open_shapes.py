import pytest
import torch
from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export import calibrate, export_onnx, load_session
from lightning_optim.export.onnx_file.open_shapes import OpenShapes


class Pair(nn.Module):
    """Two inputs of one length, and one without any."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, tokens, mask, gain=None):
        hidden = self.first(tokens).relu() * mask.unsqueeze(-1)
        return self.second(hidden if gain is None else hidden * gain)


class TakesSixRows(nn.Module):
    """Its code needs a number of rows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.linear(inputs.reshape(3, 2, 4)).flatten(0, 1)


class AtMostTen(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.linear(inputs + self.embedding(torch.arange(inputs.shape[1])))


CONV = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
PAIR = {"tokens": {1: "length"}, "mask": {1: "length"}}


def symbols(path):
    return {value.name: value.shape for value in load_session(path)._session.get_inputs()}


def test_what_is_named_is_open_and_the_result_says_so(tmp_path):
    pair = (torch.rand(4, 6, 4), torch.ones(4, 6))
    quantized = calibrate(Pair(), [pair])
    result = quantized.export(tmp_path / "pair.onnx", pair, dynamic=PAIR)
    assert result.dimensions == ({0: "batch", 1: "length"}, {0: "batch", 1: "length"})
    assert symbols(result.path) == {"tokens": ["batch", "length", 4], "mask": ["batch", "length"]}
    simulated = quantized.simulated()
    for rows, length in ((1, 3), (5, 6), (2, 17)):
        inputs = torch.rand(rows, length, 4), torch.ones(rows, length)
        (found,) = load_session(result.path).run(*inputs)
        torch.testing.assert_close(torch.from_numpy(found), simulated(*inputs), rtol=1e-3, atol=2e-2)


def test_sizes_beside_the_example_s_are_compared(tmp_path):
    images = torch.rand(4, 1, 8, 10)
    quantized = calibrate(CONV, [images])
    open_file = quantized.export(tmp_path / "open.onnx", (images,), dynamic={"input": {2: "height", 3: "width"}})
    assert open_file.parity.num_samples == 3 * 4
    assert symbols(open_file.path)["input"] == ["batch", 1, "height", "width"]
    closed = quantized.export(tmp_path / "closed.onnx", (images,))
    assert closed.dimensions == ({0: "batch"},)
    assert closed.parity.num_samples == 4
    assert symbols(closed.path)["input"] == ["batch", 1, 8, 10]


def test_batch_is_fixed_where_the_code_needs_a_number(tmp_path):
    rows = torch.rand(6, 4)
    quantized = calibrate(TakesSixRows(), [rows])
    with pytest.raises(ExportError, match="TakesSixRows cannot be exported"):
        quantized.export(tmp_path / "open.onnx", (rows,))
    result = quantized.export(tmp_path / "six.onnx", (rows,), batch=6, batches=[torch.rand(15, 4)])
    assert result.dimensions == ({},)
    assert result.parity.num_samples == 18  # three rows once more, so that the last batch is whole
    assert symbols(result.path)["inputs"] == [6, 4]


def test_float_file_has_the_same_open_dimensions(tmp_path):
    path = export_onnx(Pair(), (torch.rand(1, 1, 4), torch.ones(1, 1)), tmp_path / "pair.onnx", dynamic=PAIR)
    assert symbols(path) == {"tokens": ["batch", "length", 4], "mask": ["batch", "length"]}
    assert symbols(export_onnx(CONV, (torch.rand(2, 1, 4, 4),), tmp_path / "one.onnx", batch=1))["input"] == [
        1,
        1,
        4,
        4,
    ]


@pytest.mark.parametrize(
    ("dynamic", "match"),
    [
        ({"token": {1: "length"}}, r"dynamic names 'token', which is no tensor among .* \['mask', 'tokens'\]"),
        ({"tokens": {3: "length"}}, r"dynamic\['tokens'\] names dimension 3, but the input is \[4, 6, 4\]"),
        ({"tokens": {1: "length"}}, "Pair cannot be exported"),  # the mask has that length too
        ({"tokens": {2: "width"}}, "Pair cannot be exported"),
    ],
)
def test_what_cannot_be_open_is_refused_before_anything_is_written(tmp_path, dynamic, match):
    pair = (torch.rand(4, 6, 4), torch.ones(4, 6))
    with pytest.raises(ExportError, match=match):
        calibrate(Pair(), [pair]).export(tmp_path / "pair.onnx", pair, dynamic=dynamic)
    assert not list(tmp_path.iterdir())


def test_sizes_that_the_network_takes_are_tried(tmp_path):
    inputs = torch.rand(2, 9, 4)
    quantized = calibrate(AtMostTen(), [inputs])
    shapes = OpenShapes(dynamic={"inputs": {1: "length"}})
    others = shapes.other_sizes(quantized.network, ((inputs,), {}), lambda other: quantized.simulated()(*other[0]))
    assert [other[0][0].shape[1] for other in others] == [4, 10]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dynamic": {"x": {0: "rows"}}}, "must name dimensions from 1 on, got 0: 0 is the batch"),
        ({"dynamic": {"x": {1: "batch"}}}, "must be a name other than 'batch'"),
        ({"dynamic": {"x": {1: "no name"}}}, "must be a name other than 'batch', got 'no name'"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, match):
    with pytest.raises(ValueError, match=match):
        OpenShapes(**settings)


class WritesItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(x).view(16, 2, 2).sum(1)


def test_the_advice_to_fix_a_batch_that_the_code_takes_for_a_number_can_be_followed(tmp_path):
    args, path = (torch.randn(16, 8),), tmp_path / "net.onnx"
    with pytest.raises(ExportError, match=r"takes the batch for a number: pass batch= with that number"):
        export_onnx(WritesItsBatch(), args, path)
    assert export_onnx(WritesItsBatch(), args, path, batch=16).is_file()
