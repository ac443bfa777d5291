"""What users asked of the quantization callback that Lightning once had: each report is a test.

The numbers are those of https://github.com/Lightning-AI/pytorch-lightning/issues.
"""

import copy

import numpy as np
import onnx
import pytest
import torch
from callbacks.test_qat_fake_quant import Module, data, made, trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, QATFakeQuant, Targets
from lightning_optim.export import load_session
from lightning_optim.schedule import Constant
from support import same


class Several(nn.Module):
    """Takes two images, a mask by keyword alone, and a switch that is no tensor."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, image, other=None, *, mask, doubled=False):
        x = F.relu(self.left(image) + self.right(other)) * mask
        return {"logits": self.head(x.mean((2, 3))), "count": 2 if doubled else 1}


class SeveralModule(Module):
    """Calls the network, or itself, by position and by keyword."""

    def __init__(self, is_itself=False):
        super().__init__()
        self.net, self.is_itself = Several(), is_itself

    def forward(self, image, other=None, *, mask, doubled=False):
        return self.net(image, other=other, mask=mask, doubled=doubled)

    def training_step(self, batch, _):
        x, y = batch
        run = self if self.is_itself else self.net
        out = run(x, other=x.flip(-1), mask=(x > -1).float(), doubled=True)
        assert out["count"] == 2
        return F.cross_entropy(out["logits"], y)

    def validation_step(self, batch, _):
        x, y = batch
        logits = self(x, x.flip(-1), mask=(x > -1).float())["logits"]
        self.log("accuracy", (logits.argmax(1) == y).float().mean())


@pytest.mark.parametrize("is_itself", [False, True])
def test_7926_15862_forwards_with_keywords_and_several_inputs(tmp_path, is_itself):
    module, callback = made(SeveralModule, is_itself=is_itself), QATFakeQuant(network="" if is_itself else None)
    trainer(tmp_path, callback).fit(module, data(), data())
    assert callback.is_simulating
    name = "net.left:conv2d" if is_itself else "left:conv2d"
    assert "integer" in next(line for line in callback.describe().splitlines() if line.startswith(name))
    x = torch.randn(8, 1, 4, 4)
    inputs = {"other": x.flip(-1), "mask": (x > -1).float()}
    simulated = callback.simulated()(x, **inputs)
    assert simulated["count"] == 1
    plain = module.net.eval()(x, **inputs)
    assert 0 < (plain["logits"] - simulated["logits"]).abs().max() < 0.2
    for forbidden in ({}, {"other": x}):
        with pytest.raises(TypeError, match="mask"):
            callback.simulated()(x, **forbidden)


def test_7926_15862_what_several_inputs_compute_is_what_the_file_computes(tmp_path):
    class Logits(Several):
        def forward(self, image, other=None, *, mask):
            return super().forward(image, other, mask=mask)["logits"]

    class LogitsModule(Module):
        def __init__(self):
            super().__init__()
            self.net = Logits()

        def forward(self, x):
            return self.net(x, other=x.flip(-1), mask=(x > -1).float())

    module, callback = made(LogitsModule), QATFakeQuant()
    trainer(tmp_path, callback).fit(module, data())
    x = torch.randn(8, 1, 4, 4)
    batch = {"other": x.flip(-1), "mask": (x > -1).float()}
    callback.export(tmp_path / "net.onnx", args=(x,), kwargs=batch)
    session = load_session(tmp_path / "net.onnx")
    answers = session.run(x.numpy(), *(each.numpy() for each in batch.values()))
    step = callback._simulator.ranges.qparams("head:linear", torch.device("cpu"))[0].item()
    assert np.abs(answers[0] - callback.simulated()(x, **batch).numpy()).max() <= 1.01 * step


def test_12896_a_checkpoint_is_tested_after_conversion(tmp_path):
    module, callback = made(), QATFakeQuant()
    saver = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=True)
    loop = trainer(tmp_path, callback, saver, enable_checkpointing=True)
    loop.fit(module, data(), data())
    [validated] = loop.validate(module, data(), verbose=False)
    x = next(iter(data()))[0]
    converted = callback.export(tmp_path / "first.onnx", args=(x,)).path.read_bytes()
    [tested] = loop.test(module, data(), ckpt_path=saver.best_model_path, verbose=False)
    twin, fresh = made(), QATFakeQuant()
    [again] = trainer(tmp_path, fresh).test(twin, data(), ckpt_path=saver.best_model_path, verbose=False)
    assert validated == tested == again
    assert fresh.export(tmp_path / "again.onnx", twin, args=(x,)).path.read_bytes() == converted


def zeros_of(path):
    """Fraction of zeros in each matrix or kernel of integers that a file stores."""
    stored = [numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    return {each.shape: float((each == 0).mean()) for each in stored if each.ndim > 1 and each.dtype == np.int8}


@pytest.mark.parametrize("first", ["pruning", "quantization"])
def test_11047_zeros_of_pruning_in_the_same_run_survive_into_the_int8_file(tmp_path, first):
    pruning, callback = PruningScheduler(schedule=Constant(value=0.5)), QATFakeQuant()
    order = [pruning, callback] if first == "pruning" else [callback, pruning]
    module = made(width=8)
    trainer(tmp_path, *order, max_epochs=3).fit(module, data(), data())
    weights = {tuple(w.shape): w.detach() for w in (module.net.conv.weight, module.net.fc.weight)}
    assert pruning.target_sparsity == pytest.approx(0.5)
    callback.export(tmp_path / "net.onnx")
    found = zeros_of(tmp_path / "net.onnx")
    assert found.keys() == weights.keys()
    for shape, weight in weights.items():
        assert found[shape] >= (weight == 0).float().mean().item() > 0.3
    model = onnx.load(tmp_path / "net.onnx")
    for each in model.graph.initializer:
        whole = numpy_helper.to_array(each)
        if whole.shape in weights and whole.dtype == np.int8:
            assert (whole[(weights[whole.shape] == 0).numpy()] == 0).all()


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_8540_observers_are_off_outside_of_training(tmp_path, stage):
    module, callback = made(), QATFakeQuant()
    loop = trainer(tmp_path, callback)
    loud = DataLoader(TensorDataset(torch.randn(8, 1, 4, 4) * 100, torch.zeros(8, dtype=torch.long)), 8)
    loop.fit(module, data(), loud)
    quiet, fresh = made(), QATFakeQuant()
    trainer(tmp_path, fresh).fit(quiet, data(), data())
    assert same(callback.state_dict(), fresh.state_dict())  # as if the loud batches had never been
    before = copy.deepcopy(callback.state_dict())
    getattr(loop, stage)(module, loud)
    assert same(callback.state_dict(), before)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Pretrained(LightningModule):
    """A LightningModule that holds another, whose backbone is frozen."""

    def __init__(self):
        super().__init__()
        self.features, self.loss = Backbone(), nn.CrossEntropyLoss()

    def forward(self, x):
        return self.features(x)


class Nested(Module):
    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"body": Pretrained(), "head": nn.Linear(4, 2)})
        self.net["body"].requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.net["head"](self.net["body"](x).mean((2, 3)))

    def on_train_epoch_start(self):
        self.net["body"].eval()

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 1e-2)


@pytest.mark.parametrize("network", ["", "net.body", "net.body.features"])
def test_7551_frozen_and_nested_backbones(tmp_path, network):
    module, callback = made(Nested), QATFakeQuant(network=network)
    with torch.no_grad():
        module.net["body"].features.norm.running_mean.normal_()
    before, head = copy.deepcopy(module.net["body"].state_dict()), module.net["head"].weight.detach().clone()
    trainer(tmp_path, callback).fit(module, data(), data())
    assert callback.is_simulating
    assert same(dict(module.net["body"].state_dict()), dict(before))
    assert all(parameter.grad is None for parameter in module.net["body"].parameters())
    assert not torch.equal(module.net["head"].weight, head)
    line = next(line for line in callback.describe().splitlines() if "conv:conv2d" in line.split()[0])
    assert "with" in line  # its batch norm is folded
    inner = module if not network else module.get_submodule(network)
    x = torch.randn(4, 1, 4, 4)
    assert callback.simulated()(x).shape == inner(x).shape
    written = callback.export(tmp_path / "net.onnx", args=(x,))
    assert not written.kernels.floating.get("Conv")


def test_7551_a_frozen_backbone_may_be_left_out(tmp_path):
    module = made(Nested)
    callback = QATFakeQuant(network="", targets=Targets(exclude=("net.body",)))
    trainer(tmp_path, callback).fit(module, data(), data())
    lines = {line.split()[0]: line for line in callback.describe().splitlines()}
    assert "left out by targets" in lines["net.body.features.conv:conv2d"]
    assert "integer" in lines["net.head:linear"]


def test_6457_checkpoints_load_strictly_into_the_plain_model_and_back(tmp_path):
    module, callback = made(), QATFakeQuant()
    loop = trainer(tmp_path, callback)
    loop.fit(module, data(), data())
    loop.save_checkpoint(tmp_path / "quantized.ckpt")
    plain = Module.load_from_checkpoint(tmp_path / "quantized.ckpt", strict=True, weights_only=True)
    assert same(dict(plain.state_dict()), dict(module.state_dict()))
    bare = trainer(tmp_path)
    bare.fit(made(), data())
    bare.save_checkpoint(tmp_path / "plain.ckpt")
    again, later = made(), QATFakeQuant()
    trainer(tmp_path, later, max_epochs=4).fit(again, data(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
    assert later.is_simulating
    assert list(again.state_dict()) == list(plain.state_dict())


def test_6457_an_interrupted_run_leaves_a_module_that_loads_strictly(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, QATFakeQuant(), Stop()).fit(made(), data())
    twin = made()
    twin.load_state_dict(torch.load(tmp_path / "middle.ckpt", weights_only=True)["state_dict"], strict=True)
    assert twin(torch.randn(2, 1, 4, 4)).isfinite().all()
