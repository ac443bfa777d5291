import copy
import hashlib
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export import export_onnx, load_session


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, image):
        return self.head(F.relu(self.norm(self.conv(image))).mean((2, 3)))


class ManyInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, pair, *, mask=None, scale):
        logits = self.layer(pair["left"] + pair["right"]) * scale
        return {"logits": logits if mask is None else logits + mask, "features": [pair["left"] * 2]}


class BakedBatch(nn.Module):
    def forward(self, rows):
        return rows.view(3, 4) * 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net = Net()
    path = export_onnx(net, (torch.rand(1, 1, 6, 6),), tmp_path_factory.mktemp("onnx") / "deep" / "net.onnx")
    return net, path


def test_runtime_computes_what_the_model_computes_at_any_batch(exported):
    net, path = exported
    session = load_session(path)
    for size in (1, 2, 7):
        images = torch.rand(size, 1, 6, 6)
        expected = net.eval()(images).detach().numpy()
        np.testing.assert_allclose(session.run(images)[0], expected, atol=1e-6)


def test_the_callers_model_keeps_its_mode(exported):
    net = Net()
    net.norm.eval()
    before = {name: module.training for name, module in net.named_modules()}
    export_onnx(net, (torch.rand(2, 1, 6, 6),), exported[1].parent / "other.onnx")
    assert {name: module.training for name, module in net.named_modules()} == before


def test_equal_weights_give_equal_bytes(exported):
    net, path = exported
    again = export_onnx(net, (torch.rand(5, 1, 6, 6),), path.parent / "again.onnx")
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_no_metadata_is_left_and_inputs_keep_their_names(exported):
    model = onnx.load(exported[1])
    onnx.checker.check_model(model, full_check=True)
    items = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]
    assert not any(item.metadata_props or item.doc_string for item in items)
    assert not model.graph.value_info
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["output"]


def test_weights_outweigh_everything_else(exported):
    net, path = exported
    weights = sum(tensor.numel() * 4 for tensor in net.parameters())
    assert path.stat().st_size - weights < 800


def test_nothing_but_the_file_is_left_in_the_folder(exported):
    assert not [path for path in exported[1].parent.iterdir() if path.suffix != ".onnx"]


def test_nested_inputs_keywords_and_dict_outputs(tmp_path):
    torch.manual_seed(0)
    net = ManyInputs()
    pair = {"left": torch.rand(3, 4), "right": torch.rand(3, 4)}
    options = {"mask": torch.rand(4), "scale": torch.rand(3, 1)}
    session = load_session(export_onnx(net, (pair,), tmp_path / "many.onnx", kwargs=options))
    assert session.input_names == ("pair_left", "pair_right", "mask", "scale")
    assert session.output_names == ("logits", "features_output_0")
    expected = net(pair, **options)["logits"].detach().numpy()
    np.testing.assert_allclose(session.run(*pair.values(), *options.values())[0], expected, atol=1e-6)


def test_a_batch_of_one_opens_the_batch_where_it_is_not_baked_in(tmp_path):
    path = export_onnx(nn.Linear(3, 2), (torch.rand(1, 3),), tmp_path / "closed.onnx", batch=1)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    path = export_onnx(nn.Linear(3, 2), (torch.rand(1, 3),), tmp_path / "open.onnx")
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_model_that_bakes_its_batch_in_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"^BakedBatch cannot be exported to ONNX: .+") as caught:
        export_onnx(BakedBatch(), (torch.rand(3, 4),), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_exporter_is_silent(tmp_path, capfd):
    export_onnx(Net(), (torch.rand(2, 1, 6, 6),), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'lightning-optim\[export\]'"):
        export_onnx(Net(), (torch.rand(2, 1, 6, 6),), tmp_path / "net.onnx")


def test_a_channels_last_model_gives_the_file_of_a_row_major_one(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x = torch.rand(2, 1, 6, 6)
    row_major = export_onnx(net, (x,), tmp_path / "row_major.onnx").read_bytes()
    channels_last = x.to(memory_format=torch.channels_last)
    assert export_onnx(twin, (channels_last,), tmp_path / "channels_last.onnx").read_bytes() == row_major
    assert twin[0].weight.is_contiguous(memory_format=torch.channels_last)


class CollectsKeywords(nn.Module):
    """As wrappers do that pass on whatever they are given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, *args, **kwargs):
        return {"logits": self.layer(args[0] - kwargs["shift"]) * kwargs["scale"]}


def test_collected_keywords_have_an_open_batch_and_their_names(tmp_path):
    net = CollectsKeywords()
    named = {"scale": torch.rand(1, 3), "shift": torch.rand(1, 4)}
    session = load_session(export_onnx(net, (torch.rand(1, 4),), tmp_path / "net.onnx", kwargs=named))
    assert session.input_names == ("args_0", "scale", "shift")
    x, scale, shift = torch.rand(5, 4), torch.rand(5, 3), torch.rand(5, 4)
    expected = net(x, scale=scale, shift=shift)["logits"].detach().numpy()
    np.testing.assert_allclose(session.run(x, scale, shift)[0], expected, atol=1e-6)
