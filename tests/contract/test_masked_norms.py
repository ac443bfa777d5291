"""A masked network computes what the network does from which the same parts are removed: one meaning of masked."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Window
from lightning_optim.pruning import Channel, Head, Layer, MetricDrop, load_pruned
from lightning_optim.schedule import Constant, Linear

pytestmark = pytest.mark.filterwarnings("ignore:.*take a statistic over channels:UserWarning")


class HandWritten(nn.Module):
    """A root mean square norm as many projects write it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden):
        return self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)).to(hidden.dtype)


class Gated(nn.Module):
    """A norm with a layer of its own that has no parameters."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.ones(width)), nn.SiLU()

    def forward(self, hidden):
        return self.act(F.layer_norm(hidden, self.weight.shape, self.weight))


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized over its inputs."""

    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(images, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def flat(norm):
    return nn.Sequential(nn.Linear(8, 16), norm(16), nn.Sigmoid(), nn.Linear(16, 16), norm(16), nn.Linear(16, 3))


def conv(*norms, layer=nn.Conv2d):
    first, second = norms
    body = [nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 12, 1), first, nn.GELU(), layer(12, 8, 1), second]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 3))


class Shared(nn.Module):
    """One norm on a residual stream, called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16)

    def forward(self, inputs):
        stream = self.first(inputs)
        return self.head(self.norm(stream + self.block(input=self.norm(input=stream))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.body(self.stem(inputs.unflatten(1, (2, 4)))).mean(1))


NETS = {
    "batch_norm": lambda: flat(nn.BatchNorm1d),
    "layer_norm": lambda: flat(nn.LayerNorm),
    "rms_norm": lambda: flat(nn.RMSNorm),
    "hand_written": lambda: flat(HandWritten),
    "gated": lambda: flat(Gated),
    "shared": Shared,
    "group_norm": lambda: conv(nn.GroupNorm(1, 12), nn.GroupNorm(4, 8)),
    "instance_norm": lambda: conv(nn.InstanceNorm2d(12, affine=True), nn.GroupNorm(8, 8)),
    "standardized": lambda: conv(nn.BatchNorm2d(12), nn.GroupNorm(2, 8), layer=Standardized),
    "encoder": Encoder,
}


class Module(LightningModule):
    def __init__(self, make, rate):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.rate = make(), rate
        for parameter in self.net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("quality", 1.0 - F.cross_entropy(self.net(batch[0]), batch[1]) / 1e6)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


def data():
    generator = torch.Generator().manual_seed(1)
    inputs, classes = torch.randn(24, 8, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return DataLoader(TensorDataset(inputs, classes), batch_size=8)


def fit(module, *callbacks, **settings):
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saves = {"enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks)}
    trainer = Trainer(accelerator="cpu", max_epochs=4, callbacks=[*callbacks], **silent, **saves, **settings)
    trainer.fit(module, data(), data())
    return trainer


INPUTS = torch.linspace(-1.0, 1.0, 32).reshape(4, 8).cos()


def outputs(module):
    was_training = module.training
    with torch.no_grad():
        found = module.eval()(INPUTS)
    module.train(was_training)
    return found


class Keep(Callback):
    """Keeps what the network says at the end of each validation."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(outputs(pl_module))


@pytest.mark.parametrize("net", NETS)
def test_masked_network_trains_and_ends_as_the_cut_one(net):
    ends = {}
    for shrink in ("never", "update"):  # at once, in the first step: from then on one is masked, and one is cut
        module = Module(NETS[net], 0.05)
        pruning = PruningScheduler(
            schedule=Constant(value=0.5), structure=Channel(shrink=shrink), window=Window(end=0.5, every=0.5)
        )
        fit(module, pruning, max_steps=6)
        assert pruning.sparsity >= 0.3
        ends[shrink] = outputs(module)
    torch.testing.assert_close(ends["never"], ends["update"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("shrink", ["end", pytest.param("update", marks=pytest.mark.slow)])
def test_what_is_removed_at_the_end_was_masked_alike(net, shrink):
    ends = {}
    for mode in ("never", shrink):
        module = Module(NETS[net], 0.0)  # nothing but pruning changes the weights
        fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel(shrink=mode)), max_steps=4)
        ends[mode] = outputs(module)
    torch.testing.assert_close(ends["never"], ends[shrink], rtol=1e-4, atol=1e-5)


STRUCTURES = {
    "channel": (Channel, ("never", "end", "update")),
    "head": (Head, ("never", "end", "update")),
    "layer": (Layer, ("never", "end")),
}


UNTIL = MetricDrop(monitor="quality", max_drop=1.0)


def moments():
    """Every norm is masked until the end by default; the other modes, and with a metric, those of two nets."""
    for kind, modes in STRUCTURES.values():
        for net in NETS if kind is Channel else ["encoder"]:
            for shrink in modes:
                for until in (None, UNTIL):
                    is_default = net in ("layer_norm", "shared") or (shrink == "end" and until is None)
                    said = f"{net}-{kind.__name__}-{shrink}-{'plain' if until is None else 'until'}"
                    yield pytest.param(net, kind, shrink, until, id=said, marks=[] if is_default else pytest.mark.slow)


@pytest.mark.parametrize(("net", "structure", "shrink", "until"), list(moments()))
def test_what_is_validated_is_what_the_file_of_that_moment_holds(net, structure, shrink, until, tmp_path):
    module, keep = Module(NETS[net], 0.02), Keep()
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    pruning = PruningScheduler(schedule=Linear(end=0.6), structure=structure(shrink=shrink), until=until)
    fit(module, pruning, keep, saves, num_sanity_val_steps=0)
    assert pruning.sparsity >= 0.3
    for epoch, seen in enumerate(keep.seen[-4:]):  # with a metric there is one more, before the first epoch
        loaded = load_pruned(Module(NETS[net], 0.02), tmp_path / f"epoch={epoch}.ckpt")
        torch.testing.assert_close(outputs(loaded), seen, rtol=1e-4, atol=1e-5)


class KeepAverage(Keep):
    def on_validation_epoch_end(self, trainer, pl_module):
        super().on_validation_end(trainer, pl_module)  # while the averaged weights are in the module

    def on_validation_end(self, trainer, pl_module):
        pass


def test_averaged_copy_is_masked_with_the_network(tmp_path):
    module, keep = Module(NETS["layer_norm"], 0.05), KeepAverage()
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    pruning = PruningScheduler(schedule=Linear(end=0.6), structure=Channel(shrink="end"))
    fit(module, pruning, keep, EMAWeightAveraging(decay=0.5), saves, num_sanity_val_steps=0)
    for epoch, seen in enumerate(keep.seen):
        loaded = load_pruned(Module(NETS["layer_norm"], 0.05), tmp_path / f"epoch={epoch}.ckpt")
        torch.testing.assert_close(outputs(loaded), seen, rtol=1e-4, atol=1e-5)


def test_file_is_tested_as_it_was_validated(tmp_path):
    module, keep = Module(NETS["layer_norm"], 0.05), Keep()
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    how = {"schedule": Linear(end=0.6), "structure": Channel(shrink="end")}
    fit(module, PruningScheduler(**how), keep, saves, num_sanity_val_steps=0)
    other, fresh = Keep(), Module(NETS["layer_norm"], 0.05)
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", callbacks=[PruningScheduler(**how), other], **silent)
    trainer.validate(fresh, data(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True, verbose=False)
    torch.testing.assert_close(other.seen[0], keep.seen[1])


class Inline(nn.Module):
    """Takes a statistic over channels in its own forward, where nothing can be put in its place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, inputs):
        hidden = self.first(inputs)
        return self.head(self.second(hidden - hidden.mean(1, keepdim=True)).relu())


def test_channels_that_no_mask_takes_out_stay_and_are_named():
    module = Module(Inline, 0.05)
    schedule = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(shrink="end"))
    with pytest.warns(UserWarning, match=r"first.weight keeps its channels: mean in the network's own forward"):
        fit(module, schedule)
    assert module.net.first.out_features == 16
    assert module.net.second.out_features == 8
    assert schedule.sparsity == pytest.approx(8 / 32)
    removed = Module(Inline, 0.05)
    fit(removed, PruningScheduler(schedule=Linear(end=0.5), structure=Channel(shrink="update")))
    assert removed.net.first.out_features == 8
