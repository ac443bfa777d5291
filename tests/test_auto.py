"""Callbacks of the file that ``LIGHTNING_OPTIM`` names, in every Trainer of a script."""

import importlib

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_optim import PruningScheduler

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "callbacks.yaml"
    path.write_text(
        "prune:\n"
        "  _target_: lightning_optim.PruningScheduler\n"
        "  schedule: {_target_: lightning_optim.schedule.Cubic, end: 0.5}\n"
    )
    monkeypatch.setenv("LIGHTNING_OPTIM", str(path))
    return path


def pruning(trainer):
    return [callback for callback in trainer.callbacks if isinstance(callback, PruningScheduler)]


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_one_list_of_callbacks_serves_two_trainers(package):
    make = importlib.import_module(package).Trainer
    given = [importlib.import_module(f"{package}.callbacks").Timer()]
    one, two, three = (make(callbacks=given, **QUIET) for _ in range(3))
    (callback,) = pruning(one)
    assert pruning(two) == pruning(three) == [callback]


def test_two_lists_bring_callbacks_of_their_own():
    one, two = Trainer(callbacks=[Timer()], **QUIET), Trainer(**QUIET)
    assert len(pruning(one)) == len(pruning(two)) == 1
    assert pruning(one)[0] is not pruning(two)[0]


def test_a_trainers_own_list_may_go_to_the_next_one():
    one = Trainer(**QUIET)
    assert pruning(Trainer(callbacks=one.callbacks, **QUIET)) == pruning(one)


def test_a_script_that_fits_and_tests_with_the_same_settings_runs():
    settings = {"callbacks": [Timer()], "max_epochs": 2, "limit_train_batches": 4, **QUIET}
    model = BoringModel()
    Trainer(**settings).fit(model)
    assert torch.count_nonzero(model.layer.weight) == model.layer.weight.numel() / 2
    Trainer(**settings).test(model, verbose=False)
    Trainer(**settings).fit(model)
    assert torch.count_nonzero(model.layer.weight) == model.layer.weight.numel() / 2


def test_without_the_variable_nothing_is_added(monkeypatch):
    monkeypatch.delenv("LIGHTNING_OPTIM")
    assert pruning(Trainer(**QUIET)) == []
