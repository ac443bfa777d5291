"""How the training step calls the network: as a whole, in parts, or not at all."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, QATFakeQuant, Targets, Window
from lightning_optim.errors import TargetError
from lightning_optim.export import load_session
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Constant, Linear
from support import quiet, same


def loader():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 16, generator=generator), torch.randint(0, 5, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), 8)


class Stepping(LightningModule):
    """Its step computes its loss by a function of the module, a batch and its labels."""

    def __init__(self, loss, **children):
        super().__init__()
        self.loss = loss
        for name, child in children.items():
            self.add_module(name, child)

    def training_step(self, batch, batch_idx):
        return self.loss(self, *batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def mlp():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))


def fit(module, callback, **settings):
    quiet(callback, max_epochs=4, **settings).fit(module, loader())
    return module


def backbone_and_head(loss):
    return Stepping(loss, backbone=nn.Sequential(nn.Linear(16, 32), nn.ReLU()), head=nn.Linear(32, 5))


def test_parts_that_a_step_calls_are_cut_together():
    module = backbone_and_head(lambda m, x, y: F.cross_entropy(m.head(m.backbone(x)), y))
    fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel()))
    assert (module.backbone[0].out_features, module.head.in_features, module.head.out_features) == (16, 16, 5)


def test_what_the_step_reads_between_two_parts_keeps_its_shape():
    module = Stepping(
        lambda m, x, y: F.cross_entropy(m.head(m.body(x) + torch.zeros(32)), y),
        body=nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 32)),
        head=nn.Linear(32, 5),
    )
    fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel()))
    assert [module.body[0].out_features, module.body[2].out_features, module.head.in_features] == [12, 32, 32]


def test_parts_of_a_named_network_are_found_below_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Sequential(nn.Linear(16, 32), nn.Tanh()), nn.Linear(32, 16)

        def forward(self, x):
            return self.encode(x)

    module = Stepping(lambda m, x, y: F.mse_loss(m.net.decode(m.net.encode(x)), x), net=Net())
    fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel()))
    assert (module.net.encode[0].out_features, module.net.decode.in_features) == (16, 16)


def test_two_networks_in_turns_under_manual_optimization_are_cut_each_for_itself():
    class Adversarial(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
            self.discriminator = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1))

        def training_step(self, batch, batch_idx):
            for optimizer, sign in zip(self.optimizers(), (1.0, -1.0), strict=True):
                made = self.generator(batch[0][:, :8])
                loss = sign * self.discriminator(made).mean() + self.discriminator(batch[0]).mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), 0.01) for part in (self.generator, self.discriminator)]

    module = fit(Adversarial(), PruningScheduler(schedule=Linear(end=0.5), structure=Channel()))
    # What is generated looks like the data, whose width is given.
    assert [layer.out_features for layer in (module.generator[0], module.discriminator[0])] == [16, 12]
    assert module.generator[2].out_features == 16


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_resumed_fit_knows_the_parts_without_another_look(tmp_path, stop):
    def run(**resumed):
        torch.manual_seed(0)
        module = backbone_and_head(lambda m, x, y: F.cross_entropy(m.head(m.backbone(x)), y))
        callbacks = [
            PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), window=Window(end=0.75)),
            ModelCheckpoint(tmp_path, "{step}", save_top_k=-1),
        ]
        settings = {"max_epochs": 8, "limit_train_batches": 1, "log_every_n_steps": 1, "enable_checkpointing": True}
        quiet(*callbacks, **settings).fit(module, loader(), **resumed)
        return module

    whole = run()
    resumed = run(ckpt_path=tmp_path / f"step={stop}.ckpt", weights_only=True)
    assert whole.head.in_features == 16
    assert same([*whole.parameters()], [*resumed.parameters()])


@pytest.mark.parametrize("structure", [None, Channel()], ids=["weight", "channel"])
def test_targets_that_the_step_never_reaches_are_refused_after_its_first_batch(structure):
    module = Stepping(lambda m, x, y: F.cross_entropy(m.used(x), y), used=nn.Linear(16, 5), net=mlp())
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=structure, targets=Targets(include=["net.*"]))
    with pytest.raises(TargetError, match=r"ran none of the 2 targeted layers \('net.0', 'net.2'\).*it ran 'used'"):
        fit(module, callback)
    assert module.trainer.global_step == 1
    assert all(layer.weight.all() for layer in (module.net[0], module.net[2]))


def test_a_weight_that_is_used_without_its_module_is_reached():
    module = Stepping(lambda m, x, y: F.cross_entropy(F.linear(x, m.layer.weight), y), layer=nn.Linear(16, 5))
    callback = PruningScheduler(schedule=Constant(value=0.5))
    fit(module, callback)
    assert int((module.layer.weight == 0).sum()) == 40


def test_a_list_of_layers_and_a_single_layer_are_no_networks():
    class Listed(Stepping):
        def forward(self, x):
            for block in self.blocks:
                x = torch.relu(block(x))
            return x

    blocks = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 5)])
    module = Listed(lambda m, x, y: F.cross_entropy(m(x), y), blocks=blocks)
    fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel()))
    assert module.blocks[0].out_features == 16
    boring = BoringModel()
    callback = PruningScheduler(schedule=Constant(value=0.5))
    quiet(callback, max_epochs=1, limit_train_batches=4).fit(boring)
    assert int((boring.layer.weight == 0).sum()) == 32
    callback = PruningScheduler(schedule=Constant(value=0.5), network="layer")
    with pytest.raises(TargetError, match=r"'layer' is a single Linear: set network='', .*=\['layer'\]"):
        quiet(callback, max_epochs=1, limit_train_batches=4).fit(BoringModel())


def test_a_module_of_lightning_s_own_is_exported_by_its_own_forward(tmp_path):
    boring, callback = BoringModel(), QATFakeQuant()
    quiet(callback, max_epochs=1, limit_train_batches=4, limit_val_batches=0).fit(boring)
    assert callback.export(tmp_path / "boring.onnx", boring).kernels.integer == {"QGemm": 1}


def test_a_child_may_be_called_module():
    module = Stepping(lambda m, x, y: F.cross_entropy(m.module(x), y), module=mlp())
    targets = Targets(include=["module.0"])
    fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), network="module", targets=targets))
    assert module.module[0].out_features == 16


class Pair(NamedTuple):
    left: torch.Tensor
    right: str


class Encoder(nn.Sequential):
    def forward(self, pair):
        return super().forward(pair.left)


def test_parts_called_with_an_object_of_the_users_are_looked_at_again_after_a_resume(tmp_path):
    def make():
        module = backbone_and_head(lambda m, x, y: F.cross_entropy(m.head(m.backbone(Pair(x, "text"))), y))
        module.backbone = Encoder(*module.backbone)
        return module

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    pruning = PruningScheduler(schedule=Linear(end=0.5), structure=Channel())
    quiet(pruning, saver, max_epochs=4, enable_checkpointing=True).fit(make(), loader())
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["callbacks"][pruning.state_key]
    assert not saved["calls"]["is_known"]
    module = make()
    again = PruningScheduler(schedule=Linear(end=0.5), structure=Channel())
    with pytest.warns(UserWarning, match="what is due in the first two batches is done after them"):
        quiet(again, max_epochs=4).fit(module, loader(), ckpt_path=tmp_path / "step=3.ckpt")
    assert (module.backbone[0].out_features, module.head.in_features) == (16, 16)


class AutoEncoder(LightningModule):
    """Lightning's own first example: the step calls the parts, and ``forward`` is the encoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_parts_are_simulated_as_the_file_of_forward_computes_and_validation_stops_the_fit(tmp_path):
    module, callback = AutoEncoder(), QATFakeQuant()
    trainer = quiet(callback, EarlyStopping("val_loss", patience=1), max_epochs=10)
    trainer.fit(module, loader(), loader())
    assert trainer.current_epoch < 6  # the metric is constant, and the monitor did not wait behind the callback
    assert "decoder.2:linear" in callback.describe()
    x = next(iter(loader()))[0]
    written = callback.export(tmp_path / "encoder.onnx", module, args=(x,))
    deployed = torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    assert torch.equal(callback.simulated(module)(x), deployed)


def test_what_one_part_puts_out_is_rounded_once_however_many_parts_read_it():
    callback = QATFakeQuant()
    fit(AutoEncoder(), callback)
    rows = [line.split()[0] for line in callback.describe().splitlines()[1:]]
    assert next(row for row in rows if row.startswith("decoder")) == "decoder.0:linear"
    assert "decoder.0:linear<0" not in callback.state_dict()["ranges"]["keys"]


def test_parts_are_known_to_a_validation_from_a_checkpoint(tmp_path):
    module, callback = AutoEncoder(), QATFakeQuant()
    trainer = quiet(callback, max_epochs=3)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    wanted = trainer.validate(module, loader(), verbose=False)
    fresh = quiet(QATFakeQuant())
    assert fresh.validate(AutoEncoder(), loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False) == wanted
    plain = quiet().validate(module, loader(), verbose=False)
    assert plain != wanted


def test_a_network_that_is_never_called_is_refused_by_quantization_after_the_first_batch():
    module = Stepping(lambda m, x, y: F.cross_entropy(m.used(x), y), used=nn.Linear(16, 5), net=mlp())
    with pytest.raises(TargetError, match="nothing can be quantized in Sequential: the training step never called it"):
        fit(module, QATFakeQuant(network="net"))
    assert module.trainer.global_step == 1
    with pytest.raises(TargetError, match="ran no operator of it that can compute in integers"):
        fit(Stepping(lambda m, x, y: m.net(x).square().mean(), net=nn.Sequential(nn.LayerNorm(16))), QATFakeQuant())


@pytest.mark.parametrize("compiled", [["backbone"], ["backbone", "head"]])
def test_parts_may_be_compiled(compiled):
    module = backbone_and_head(lambda m, x, y: F.cross_entropy(m.head(m.backbone(x)), y))
    for name in compiled:
        setattr(module, name, torch.compile(getattr(module, name), backend="eager"))
    fit(module, PruningScheduler(schedule=Linear(end=0.5), structure=Channel()))
    sizes = {name.replace("_orig_mod.", ""): tuple(value.shape) for name, value in module.named_parameters()}
    assert (sizes["backbone.0.weight"], sizes["head.weight"]) == ((16, 16), (5, 16))
