"""Networks that take another way from batch to batch, on one rank or another, or in evaluation."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import QATFakeQuant
from lightning_optim.errors import ExportError
from lightning_optim.quantization import LearnedStepAffine
from lightning_optim.surgery.torch_private import pytree
from support import quiet, run_script, same


class LayerDrop(nn.Module):
    """Skips residual branches of very different scales in training, by Python's ``if``."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for place, block in enumerate(self.blocks):
            if self.training and torch.rand(()) < 0.5:
                continue
            x = x + block(x) * 4.0**place
        return self.head(x.mean((2, 3)))


class Detector(nn.Module):
    """Gives maps in training, and puts them together in evaluation."""

    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 9, 3, 2, 1), nn.Conv2d(3, 9, 3, 4, 1)

    def forward(self, x):
        maps = [self.near(x), self.far(x)]
        return maps if self.training else torch.cat([each.flatten(2) for each in maps], 2)


class SharedActivation(nn.Module):
    def __init__(self):
        super().__init__()
        act = nn.ReLU()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x)


class Module(LightningModule):
    def __init__(self, net, rate=0.0):
        super().__init__()
        self.net, self.rate = net, rate

    def loss(self, x):
        return sum(leaf.square().mean() for leaf in pytree.tree_leaves(self.net(x)))

    def training_step(self, batch, _):
        return self.loss(batch[0])

    def validation_step(self, batch, _):
        self.log("loss", self.loss(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


def images(count=64):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def loader(count=64):
    return DataLoader(TensorDataset(images(count)), 8)


def trained(net, *, epochs=4, rate=0.0, **settings):
    torch.manual_seed(0)
    module, callback = Module(net, rate), QATFakeQuant(network="net", **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no training batch has shown")
        quiet(callback, max_epochs=epochs).fit(module, loader(), loader())
    return module, callback


def error_of(callback, net):
    with torch.no_grad():
        expected = net.eval()(images())
    return float((callback.simulated()(images()) - expected).norm() / expected.norm())


def test_layer_drop_is_validated_as_it_computes_and_exported(tmp_path):
    torch.manual_seed(0)
    module, callback = trained(LayerDrop(), epochs=6)
    assert error_of(callback, module.net) < 0.05  # by the order of calls it would be 0.9
    sums = {key: callback._simulator.ranges.range_of(key)[1] for key in callback._simulator.ranges.keys if "add" in key}
    assert sums[":add[blocks.0]"] < sums[":add[blocks.1]"] < sums[":add[blocks.2]"]
    assert callback.export(tmp_path / "net.onnx").kernels.integer["QLinearConv"] == 4


def test_what_evaluation_alone_runs_is_named_and_completed_by_calibrate(tmp_path):
    module, callback = Module(Detector()), QATFakeQuant()
    with pytest.warns(UserWarning, match=r"range of ':cat\[far\]'.*calibrate\(\) complete"):
        quiet(callback, max_epochs=1).fit(module, loader(), loader())
    with pytest.raises(ExportError, match="evaluation alone ran it, no training batch did: let calibrate"):
        callback.export(tmp_path / "net.onnx")
    before = copy.deepcopy(callback._simulator)
    for model in (module, module.net):
        callback.calibrate(model, loader() if model is module else [images()])
        after = callback._simulator
        assert {*after.ranges.keys} - {*before.ranges.keys} == {":cat[far]"}
        assert all(after.ranges.range_of(key) == before.ranges.range_of(key) for key in before.ranges.keys)
        callback.export(tmp_path / "net.onnx")


def test_calibrate_after_a_fit_keeps_learned_steps_and_a_resumed_fit_trains_those_that_came():
    module, callback = trained(Detector(), rate=0.01, activation_quantizer=LearnedStepAffine(), learning_rate=0.01)
    learned = callback._simulator.learned.state_dict()
    callback.calibrate(module, loader())
    assert same(callback._simulator.learned.state_dict(), learned)
    module.net.forward = lambda x, net=module.net: torch.cat([net.near(x).flatten(2), net.far(x).flatten(2)], 2)
    quiet(callback, max_epochs=1).fit(module, loader())
    after = callback._simulator.learned
    assert {*after.keys} >= {"activation/near:conv2d", "activation/far:conv2d", "activation/:cat[far]"}
    assert after.trained.numel() == learned["trained"].numel() + 2  # a step and an offset


def test_calibrate_without_a_fit_starts_anew():
    torch.manual_seed(0)
    net, callback = SharedActivation(), QATFakeQuant()
    ends = []
    for scale in (1.0, 9.0):
        callback.calibrate(net, [scale * images()])
        ends.append(callback._simulator.ranges.range_of("body.1:linear<0")[1])
    assert ends[1] == pytest.approx(9.0 * ends[0])


def test_a_module_under_two_names_is_exported(tmp_path):
    torch.manual_seed(0)
    _, callback = trained(SharedActivation())
    written = callback.export(tmp_path / "net.onnx")
    assert written.kernels.floating == {}


def test_what_is_known_of_branches_survives_a_checkpoint():
    module, callback = trained(LayerDrop())
    state = callback.state_dict()
    twin = QATFakeQuant(network="net")
    twin.load_state_dict(copy.deepcopy(state))
    assert same(twin.state_dict(), state)
    assert torch.equal(twin.simulated(module)(images()), callback.simulated()(images()))


class Excluding(nn.Module):
    """Takes one of two branches, of very different scales, and adds it to its input."""

    def __init__(self):
        super().__init__()
        self.branches, self.takes = nn.ModuleList(nn.Linear(6, 6) for _ in range(2)), 0

    def forward(self, x):
        return x + self.branches[self.takes](x) * 50.0**self.takes


class Ranked(Module):
    """Takes another branch on each rank."""

    def training_step(self, batch, _):
        self.net.takes = self.global_rank
        return self.loss(batch[0])


def fit_on_two_ranks():
    torch.manual_seed(0)
    module = Ranked(Excluding())
    callback = QATFakeQuant(network="net", activation_quantizer=LearnedStepAffine(), learning_rate=1e-6)
    data = DataLoader(TensorDataset(torch.randn(512, 6)), 32)
    quiet(callback, max_epochs=1, strategy="ddp_find_unused_parameters_true", devices=2).fit(module, data)
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, callback.state_dict())
    assert same(everyone[0]["plan"], everyone[1]["plan"])
    assert same(everyone[0]["ranges"], everyone[1]["ranges"])
    assert same(everyone[0]["learned"], everyone[1]["learned"])
    ranges = callback._simulator.ranges
    ends = [ranges.range_of(f":add[branches.{place}]") for place in range(2)]
    assert all(map(ranges.has, ranges.keys))
    assert ends[1][1] > 5.0 * ends[0][1]
    assert {f"activation/:add[branches.{place}]" for place in range(2)} <= {*callback._simulator.learned.keys}
    for place in range(2):
        module.net.takes = place
        x = torch.randn(64, 6)
        with torch.no_grad():
            expected = module.net.eval()(x)
        error = (callback.simulated()(x) - expected).norm() / expected.norm()
        assert error < 0.1, error  # without a range of its own, one of them would be cut off, or be a step or two
    torch.distributed.destroy_process_group()


def test_ranks_that_take_other_branches_end_with_the_ranges_of_both(tmp_path):
    run_script(Path(__file__), cwd=tmp_path)


if __name__ == "__main__":
    fit_on_two_ranks()
