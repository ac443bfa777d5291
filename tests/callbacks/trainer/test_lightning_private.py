import ast
import copy
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, launchers
from lightning.pytorch.strategies.launchers import multiprocessing
from lightning.pytorch.trainer.connectors import callback_connector
from torch import nn

import lightning_optim
from lightning_optim.callbacks.trainer.lightning_private import (
    averaged_model,
    callbacks_of_new_trainer,
    compiler_of,
    ddp_settings,
    is_compiled,
    is_validation_due,
    spawns_processes,
    transfer_batch,
)
from support import quiet

PACKAGE = Path(lightning_optim.__file__).parent
HOME = PACKAGE / "callbacks/trainer/lightning_private.py"
OWNERS = {
    "_compiler_ctx": LightningModule,
    "_apply_batch_transfer_handler": LightningModule,
    "_on_before_batch_transfer": LightningModule,
    "_data_fetcher": lambda: quiet().fit_loop,
    "_should_check_val_fx": lambda: quiet().fit_loop.epoch_loop,
    "_average_model": lambda: StochasticWeightAveraging(0.1),
    "_ddp_kwargs": DDPStrategy,
    "_MultiProcessingLauncher": lambda: launchers,
    "_CallbackConnector": lambda: callback_connector,
    "_run_early_stopping_check": lambda: EarlyStopping("loss"),
    "_results": lambda: quiet().fit_loop.epoch_loop,
    "_skip_backward": lambda: quiet().fit_loop,
    "_data_source": lambda: quiet().fit_loop,
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def read(tree):
    """Private names that a file reads, by attribute or by string."""
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in attributes | strings if is_private(name) and name.isidentifier()}


def bound(tree):
    """Private names of a file's own: functions, classes, variables, and what it sets on ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def _is_self(node):
    return isinstance(node, ast.Name) and node.id == "self"


def private_names_of_lightning():
    folders = ("callbacks", "core", "loops", "plugins", "strategies", "trainer", "utilities")
    root = Path(lightning.pytorch.__file__).parent
    names = set().union(*(bound(parse(path)) for folder in folders for path in (root / folder).rglob("*.py")))
    return names - set(vars(nn.Module())) - set(dir(nn.Module))  # torch's, which Lightning only sets


def parse(path):
    return ast.parse(path.read_text())


def test_no_other_file_reads_a_private_name_of_lightning():
    private = private_names_of_lightning()
    assert set(OWNERS) <= private
    found = {}
    for path in PACKAGE.rglob("*.py"):
        tree = parse(path)
        strangers = (read(tree) & private) - bound(tree)
        if strangers and path != HOME:
            found[str(path.relative_to(PACKAGE))] = sorted(strangers)
    assert not found


@pytest.mark.parametrize("name", OWNERS)
def test_installed_lightning_has_the_private_name(name):
    assert hasattr(OWNERS[name](), name)


def test_every_name_of_the_file_is_tried():
    assert read(parse(HOME)) == set(OWNERS)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.compilers = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self(batch).sum()

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [*batch, "before"]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return [*batch, str(device)]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [*batch, "after"]


class Peek(Callback):
    def on_fit_start(self, trainer, pl_module):
        self.is_compiled, self.compiler = is_compiled(pl_module), compiler_of(pl_module)


class Plain(Net):
    on_before_batch_transfer = LightningModule.on_before_batch_transfer
    transfer_batch_to_device = LightningModule.transfer_batch_to_device
    on_after_batch_transfer = LightningModule.on_after_batch_transfer

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_module_compiled_as_a_whole_is_told_from_a_plain_one():
    peek = Peek()
    quiet(peek, max_steps=1).fit(torch.compile(Plain(), backend="eager"), torch.ones(1, 1, 2))
    assert peek.is_compiled
    assert callable(peek.compiler)
    quiet(peek, max_steps=1).fit(Plain(), torch.ones(1, 1, 2))
    assert not peek.is_compiled
    assert peek.compiler is None


def test_a_batch_goes_through_the_three_hooks_of_transfer():
    assert transfer_batch(Net(), []) == ["before", "cpu", "after"]


class Due(Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(is_validation_due(trainer))


class Validated(Plain):
    def validation_step(self, batch, batch_idx): ...


def test_validation_is_due_when_the_fit_would_validate():
    assert not is_validation_due(quiet())
    due, batches = Due(), torch.ones(4, 1, 2)
    quiet(due, max_epochs=1, val_check_interval=2, num_sanity_val_steps=0).fit(Validated(), batches, batches)
    assert due.found == [False, True, False, True]


def test_averaged_copies_of_both_of_lightnings_callbacks():
    for callback in (EMAWeightAveraging(decay=0.5), StochasticWeightAveraging(0.1, swa_epoch_start=1)):
        assert averaged_model(callback) is None
        quiet(callback, max_epochs=2).fit(Plain(), torch.ones(2, 1, 2))
        assert isinstance(averaged_model(copy.copy(callback)), Plain)
    assert averaged_model(Peek()) is None


def test_settings_of_ddp_are_those_that_it_will_wrap_with():
    trainer = quiet(strategy=DDPStrategy(static_graph=True), devices=2)
    assert ddp_settings(trainer) == {"static_graph": True}
    assert ddp_settings(quiet()) is None


def test_processes_that_multiprocessing_starts():
    assert spawns_processes(quiet(strategy="ddp_fork", devices=2))
    assert not spawns_processes(quiet(strategy="ddp", devices=2))
    assert not spawns_processes(quiet())
    assert multiprocessing._MultiProcessingLauncher is launchers._MultiProcessingLauncher


def test_the_callbacks_of_a_trainer_under_construction_are_told(monkeypatch):
    seen = []
    monkeypatch.setattr(
        callback_connector, "_load_external_callbacks", lambda _: seen.append(callbacks_of_new_trainer()) or []
    )
    assert callbacks_of_new_trainer() == ()
    given = [Peek()]
    Trainer(callbacks=given, logger=False, accelerator="cpu")
    assert len(seen) == 1
    assert seen[0] is given
