import copy
import pickle
import re

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import QATFakeQuant, Targets, Window
from lightning_optim.errors import ArtefactError, TargetError
from lightning_optim.quantization import Affine
from support import needs_graphs_of_its_own, quiet, same


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 2)

    def forward(self, x, scale=None):
        x = F.relu(self.norm(self.conv(x)))
        x = x if scale is None else x * scale
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Module(LightningModule):
    def __init__(self, width=4):
        super().__init__()
        self.net = Net(width)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    test_step = validation_step

    def predict_step(self, batch, _):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Stateless(Module):
    """Makes its batch from epoch and index: a loader starts anew when a run is resumed within an epoch."""

    def training_step(self, batch, index):
        generator = torch.Generator().manual_seed(100 * self.current_epoch + index)
        x = torch.randn(8, 1, 4, 4, generator=generator)
        return super().training_step((x, (x.mean((1, 2, 3)) > 0).long()), index)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, _):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class Root(Module):
    """A LightningModule that is the network itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 2)
        self.head = nn.Linear(2, 2)
        del self.net

    def forward(self, x):
        return self.head(F.relu(self.body(x.flatten(1))))


def data(batches=4):
    torch.manual_seed(1)
    x = torch.randn(8 * batches, 1, 4, 4)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), 8)


def trainer(tmp_path, *callbacks, **settings):
    return quiet(*callbacks, **{"max_epochs": 2, "default_root_dir": tmp_path} | settings)


def made(kind=Module, **settings):
    torch.manual_seed(0)
    return kind(**settings)


def test_keys_objects_and_forward_are_the_users_before_and_after(tmp_path):
    module, callback = made(), QATFakeQuant()
    keys, parameters = list(module.state_dict()), [*module.parameters()]
    trainer(tmp_path, callback).fit(module, data(), data())
    assert callback.is_simulating
    assert list(module.state_dict()) == keys
    assert all(left is right for left, right in zip(parameters, module.parameters(), strict=True))
    assert "forward" not in vars(module.net)


def test_each_epoch_logs_whether_the_network_is_simulated(tmp_path):
    logged = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            logged.append(trainer.callback_metrics.get("quantization/is_simulating"))

    window = Window(begin=1, unit="epoch")
    trainer(tmp_path, QATFakeQuant(window=window), Watch(), max_epochs=3).fit(made(), data())
    assert [None if value is None else float(value) for value in logged] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_a_resumed_run_ends_bit_equal(tmp_path, step):
    whole, callback = made(Stateless), QATFakeQuant()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callback, saver, enable_checkpointing=True).fit(whole, data())
    resumed, other = made(Stateless), QATFakeQuant()
    trainer(tmp_path, other).fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(callback.state_dict()["ranges"]["observer"], other.state_dict()["ranges"]["observer"])


def test_a_checkpoint_is_tested_as_it_was_validated(tmp_path):
    module, callback = made(), QATFakeQuant()
    loop = trainer(tmp_path, callback)
    loop.fit(module, data())
    loop.save_checkpoint(tmp_path / "a.ckpt")
    expected = trainer(tmp_path, callback).predict(module, data())
    twin, fresh = made(), QATFakeQuant()
    got = trainer(tmp_path, fresh).predict(twin, data(), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(torch.cat(expected), torch.cat(got))
    simulated = torch.cat([fresh.simulated(twin)(x) for x, _ in data()])
    assert torch.equal(simulated, torch.cat(got))
    plain = made()
    plain.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    assert not torch.equal(torch.cat(trainer(tmp_path).predict(plain, data())), torch.cat(got))


def test_observers_are_off_in_validation(tmp_path):
    class Watch(Callback):
        def on_validation_start(self, trainer, pl_module):
            self.before = copy.deepcopy(callback.state_dict())

        def on_validation_end(self, trainer, pl_module):
            assert same(self.before["ranges"]["observer"], callback.state_dict()["ranges"]["observer"])

    callback = QATFakeQuant()
    loud = DataLoader(TensorDataset(torch.randn(8, 1, 4, 4) * 100, torch.zeros(8, dtype=torch.long)), 8)
    trainer(tmp_path, callback, Watch()).fit(made(), data(), loud)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"max_epochs": -1, "max_steps": 6},
    ],
)
def test_trains_under_the_trainers_other_settings(tmp_path, settings):
    callback = QATFakeQuant()
    trainer(tmp_path, callback, **settings).fit(made(), data(), data())
    assert callback.is_simulating


@pytest.mark.parametrize(("kind", "network"), [(Manual, None), (Root, ""), (Root, None)])
def test_trains_other_modules(tmp_path, kind, network):
    callback, module = QATFakeQuant(network=network), made(kind)
    trainer(tmp_path, callback).fit(module, data(), data())
    assert "linear" in callback.describe()
    assert "forward" not in vars(module)


def test_batch_norm_statistics_freeze_with_the_window(tmp_path):
    class Watch(Callback):
        means = ()

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.means += (pl_module.net.norm.running_mean.clone(),)

    watch = Watch()
    trainer(tmp_path, QATFakeQuant(freeze={"batch_norm": 0.5}), watch).fit(made(), data())
    changes = [not torch.equal(*pair) for pair in zip(watch.means, watch.means[1:], strict=False)]
    assert changes == [True, True, True, False, False, False, False]


def test_before_the_window_training_is_the_plain_one(tmp_path):
    plain, module = made(), made()
    trainer(tmp_path).fit(plain, data())
    callback = QATFakeQuant(window=Window(begin=8, end=9, unit="step"))
    with pytest.raises(ValueError, match="the window opens at step 8"):
        trainer(tmp_path, callback).fit(made(), data())
    callback = QATFakeQuant(window=Window(begin=7, end=9, unit="step"))
    trainer(tmp_path, callback).fit(module, data())
    assert not callback.is_simulating
    assert same(plain.state_dict(), module.state_dict())


def test_the_best_checkpoint_is_of_the_simulated_network(tmp_path):
    module, callback = made(), QATFakeQuant(window=Window(begin=1, unit="epoch"))
    saver = ModelCheckpoint(tmp_path, monitor="accuracy", mode="max", filename="{epoch}")
    stopper = EarlyStopping("accuracy", patience=1, mode="max")
    trainer(tmp_path, callback, saver, stopper, max_epochs=3, enable_checkpointing=True).fit(module, data(), data())
    saved = torch.load(saver.best_model_path, weights_only=True)
    assert saved["epoch"] >= 1
    assert stopper.best_score == saver.best_model_score
    assert saved["callbacks"][callback.state_key]["ranges"]["keys"]


def test_an_exception_leaves_nothing_behind(tmp_path):
    class Boom(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                raise KeyError("boom")

    module, callback = made(), QATFakeQuant()
    with pytest.raises(KeyError):
        trainer(tmp_path, callback, Boom()).fit(module, data())
    assert "forward" not in vars(module.net)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_copies_made_in_training_are_plain(tmp_path):
    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.module = copy.deepcopy(pl_module.net)
            self.callback = pickle.loads(pickle.dumps(callback))  # noqa: S301  # our own bytes

    callback, copier = QATFakeQuant(), Copy()
    trainer(tmp_path, callback, copier).fit(made(), data())
    assert type(copier.module.forward) is type(made().net.forward)
    assert copier.callback.state_key == callback.state_key


def test_two_instances_keep_their_own_state(tmp_path):
    class Pair(Module):
        def __init__(self):
            super().__init__()
            self.other = Net()

        def forward(self, x):
            return self.net(x) + self.other(x)

    first, second = QATFakeQuant(network="net", name="first"), QATFakeQuant(network="other", name="second")
    loop = trainer(tmp_path, first, second)
    loop.fit(made(Pair), data())
    loop.save_checkpoint(tmp_path / "a.ckpt")
    states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert {first.state_key, second.state_key} <= set(states)
    assert first.is_simulating
    assert second.is_simulating


def test_a_second_fit_of_another_model_starts_afresh(tmp_path):
    callback = QATFakeQuant()
    trainer(tmp_path, callback).fit(made(), data())
    again, fresh = made(), QATFakeQuant()
    trainer(tmp_path, callback).fit(again, data())
    once = made()
    trainer(tmp_path, fresh).fit(once, data())
    assert same(again.state_dict(), once.state_dict())


def test_pruned_weights_stay_pruned(tmp_path):
    class Mask(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            with torch.no_grad():
                pl_module.net.conv.weight[0] = 0

    module, callback = made(), QATFakeQuant()
    trainer(tmp_path, callback, Mask()).fit(module, data())
    assert callback.simulated()(torch.randn(2, 1, 4, 4)).isfinite().all()
    assert module.net.conv.weight[0].abs().max() == 0


def compile_within(module, backend):
    module.net = torch.compile(module.net, backend=backend)
    return module


def compile_in_place(module, backend):
    module.net.compile(backend=backend)
    return module


def compile_whole(module, backend):
    module.log = lambda *_, **__: None  # Lightning's cannot be traced
    return torch.compile(module, backend=backend)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def compile_around(module, backend):
    module.net = torch.compile(Around(module.net), backend=backend)
    return module


def compile_around_in_place(module, backend):
    module.net = Around(module.net)
    module.net.compile(backend=backend)
    return module


@needs_graphs_of_its_own
@pytest.mark.parametrize(
    "compiled", [compile_within, compile_in_place, compile_whole, compile_around, compile_around_in_place]
)
def test_a_compiled_network_is_simulated_in_one_graph_and_learns_the_same(tmp_path, compiled):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    module, eager = made(), made()
    name = "net.inner" if "around" in compiled.__name__ else "net"
    callback, other = QATFakeQuant(network=name), QATFakeQuant()
    trainer(tmp_path, callback).fit(compiled(module, backend), data())
    trainer(tmp_path, other).fit(eager, data())
    rounded = [graph for graph in graphs if any("fake" in str(node.target) for node in graph.graph.nodes)]
    assert len(rounded) == 2  # ranges are observed, with batch norms as they are and folded
    weights = {re.sub(r"_orig_mod\.|inner\.", "", name): value for name, value in module.state_dict().items()}
    for name, value in eager.state_dict().items():
        assert torch.equal(value, weights[name]), name
    ends = [each.state_dict()["ranges"]["observer"]["high"] for each in (callback, other)]
    assert torch.equal(*ends)
    torch._dynamo.reset()


def test_excluded_layers_are_named_in_the_table(tmp_path):
    callback = QATFakeQuant(targets=Targets(exclude=("net.fc",)))
    trainer(tmp_path, callback).fit(made(), data())
    line = next(line for line in callback.describe().splitlines() if line.startswith("fc:linear"))
    assert "float" in line
    assert "left out by targets" in line


def test_a_wrong_setting_is_refused_before_anything_changes(tmp_path):
    module = made()
    with pytest.raises(TargetError, match=r"net\.cnv"):
        trainer(tmp_path, QATFakeQuant(targets=Targets(exclude=("net.cnv",)))).fit(module, data())
    assert "forward" not in vars(module.net)
    with pytest.raises(ValueError, match="freeze knows"):
        QATFakeQuant(freeze={"norm": 0.5})
    with pytest.raises(ValueError, match=r"freeze\.observer must be in"):
        QATFakeQuant(freeze={"observer": 2})
    with pytest.raises(TypeError, match="quantizer"):
        QATFakeQuant(weight_quantizer="symmetric")


def test_ranges_of_another_model_are_refused(tmp_path):
    callback = QATFakeQuant()
    trainer(tmp_path, callback).fit(made(), data())
    other = QATFakeQuant(network="")
    other.load_state_dict(callback.state_dict())
    with pytest.raises(ArtefactError, match="another model"):
        trainer(tmp_path, other).validate(made(Root), data())


def test_evaluation_without_ranges_warns(tmp_path):
    with pytest.warns(UserWarning, match="has no ranges"):
        trainer(tmp_path, QATFakeQuant(activation_quantizer=Affine())).validate(made(), data())


def test_what_was_exported_is_verified_to_the_bit(tmp_path):
    module, callback = made(), QATFakeQuant()
    trainer(tmp_path, callback).fit(module, data())
    exported = callback.export(tmp_path / "model.onnx")
    found = callback.verify(exported.path, [x for x, _ in data()])
    assert (found.compared, found.exact_fraction) == (64, 1.0)
