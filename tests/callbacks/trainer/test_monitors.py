import copy
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import QATFakeQuant, Targets, Window
from lightning_optim.callbacks.trainer.monitors import SuspendedMonitors
from lightning_optim.surgery.patch import PatchedMethod
from support import quiet, run_script
from written_losses import BATCHES, LOSSES, TARGET, WrittenLosses, plateau, pruning, save


def reached(path):
    (state,) = [
        state for key, state in torch.load(path, weights_only=True)["callbacks"].items() if "PruningScheduler" in key
    ]
    return state["reached"]


class Folder(Callback):
    """Looks into a folder at every step, once there is a file in it."""

    def __init__(self, folder):
        self.folder, self.steps = folder, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.look()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.look()

    def look(self):
        files = [path for path in self.folder.iterdir() if path.suffix == ".ckpt"]
        if files or self.steps:
            self.steps += 1
            assert files, "there is nothing to resume from"
        for path in files:
            assert path.exists(), f"{path.name} leads nowhere"


SAVERS = {
    "best": {},
    "three": {"save_top_k": 3},
    "all": {"save_top_k": -1},
    "last alone": {"save_top_k": 0, "save_last": True, "every_n_train_steps": 3},
    "last": {"save_top_k": 2, "save_last": True},
    "link": {"save_last": "link"},
    "link of three": {"save_top_k": 3, "save_last": "link"},
    "one name": {"filename": "best", "save_last": "link"},
    "one name for two": {"filename": "best", "save_top_k": 2},
    "one name, written over": {"filename": "best", "enable_version_counter": False, "save_last": True},
    "steps": {"every_n_train_steps": 3, "save_top_k": 2, "save_last": "link"},
    "after validation": {"save_on_train_epoch_end": False, "save_last": "link"},
    "highest": {"mode": "max", "save_top_k": 2, "save_last": "link"},
    "integers": {"monitor": "count", "save_top_k": 2},
    "step": {"monitor": "step", "mode": "max", "every_n_train_steps": 3, "save_top_k": 2},
    "epoch": {"monitor": "epoch", "mode": "max"},
    "newest": {"monitor": None, "save_last": "link"},
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("setting", SAVERS)
def test_at_every_step_there_is_a_checkpoint_and_at_the_end_the_best_are_pruned(tmp_path, setting, every):
    saver = ModelCheckpoint(tmp_path, **{"monitor": "val_loss"} | SAVERS[setting])
    folder = Folder(tmp_path)
    save(pruning(), saver, folder, check_val_every_n_epoch=every)
    assert folder.steps
    files = {str(path) for path in tmp_path.iterdir() if not path.name.startswith("last")}
    if saver.save_top_k == -1:
        assert files > saver.best_k_models.keys()
    elif saver.monitor is not None:
        assert files == saver.best_k_models.keys()
    for path in (*saver.best_k_models, *filter(None, [saver.best_model_path, saver.kth_best_model_path])):
        assert reached(path) == 0.5


@pytest.mark.parametrize(("mode", "top"), [("min", 1), ("min", 3), ("min", 9), ("max", 2), ("max", -1)])
def test_the_best_are_those_of_the_pruned_model_alone(tmp_path, mode, top):
    saver = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", mode=mode, save_top_k=top)
    save(pruning(), saver)
    ranked = sorted(range(TARGET, len(LOSSES)), key=lambda epoch: LOSSES[epoch], reverse=mode == "max")
    kept = ranked if top == -1 else ranked[:top]
    name = lambda epoch: str(tmp_path / f"epoch={epoch}.ckpt")  # noqa: E731  # one use
    assert {path: round(float(score), 6) for path, score in saver.best_k_models.items()} == {
        name(epoch): LOSSES[epoch] for epoch in kept
    }
    assert (saver.best_model_path, saver.kth_best_model_path) == (name(kept[0]), name(kept[-1]))
    assert (float(saver.best_model_score), float(saver.kth_value)) == pytest.approx((LOSSES[kept[0]], LOSSES[kept[-1]]))


def test_a_name_without_metrics_stays_the_name_of_the_best(tmp_path):
    class Names(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch:
                assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]

    saver = ModelCheckpoint(tmp_path, "best", monitor="val_loss")
    save(pruning(), saver, Names())
    assert reached(tmp_path / "best.ckpt") == 0.5


@pytest.mark.parametrize("filename", ["best", "{epoch}"])
def test_files_of_an_earlier_run_stay_as_they_are(tmp_path, filename):
    def saver():
        return ModelCheckpoint(tmp_path, filename, monitor="val_loss", save_top_k=2, save_last=True)

    save(saver(), max_epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "last.ckpt"}
    assert len(before) == 2
    second = saver()
    with pytest.warns(UserWarning, match=r"best of an earlier fit .* stay where they are"):
        save(pruning(), second, ckpt_path=tmp_path / "last.ckpt")
    assert before == {path: path.read_bytes() for path in before}
    assert len(second.best_k_models) == 2
    assert not {str(path) for path in before} & second.best_k_models.keys()
    assert len([*tmp_path.iterdir()]) == 5
    assert {reached(path) for path in second.best_k_models} == {0.5}


class Stop(Callback):
    """Cuts a fit short after its second epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


def test_files_of_a_fit_that_was_cut_short_stay_as_they_are(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=True)
    save(pruning(), saver, Stop())
    second = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=True)
    save(pruning(), second, ckpt_path=tmp_path / "last.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=1.ckpt", "epoch=6.ckpt", "last.ckpt"}


def test_a_fit_that_goes_on_after_the_target_keeps_its_best(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=True)
    save(pruning(), saver, max_epochs=5)
    second = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=True)
    save(pruning(), second, ckpt_path=tmp_path / "last.ckpt", max_epochs=6)
    assert Path(second.best_model_path).name == "epoch=4.ckpt"


def test_a_second_fit_of_one_trainer_leaves_the_files_of_the_first(tmp_path):
    saver, loader = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss"), DataLoader(torch.zeros(BATCHES, 1))
    trainer = save(pruning(), saver, Stop())
    trainer.should_stop = False
    trainer.fit(trainer.lightning_module, loader, loader)
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=1.ckpt", "epoch=6.ckpt"}


def test_two_checkpoint_callbacks_in_one_folder_keep_their_own(tmp_path):
    low = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last="link")
    high = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", mode="max", save_last="link")
    newest = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=2)
    folder = Folder(tmp_path)
    save(pruning(), low, high, newest, folder)
    for saver in (low, high, newest):
        assert reached(saver.best_model_path) == 0.5


class Late(AsyncCheckpointIO):
    """Writes nothing before the next step but one."""

    waiting: list

    def save_checkpoint(self, *args, **kwargs):
        self.waiting = [*getattr(self, "waiting", []), (args, kwargs)]

    def write(self):
        for args, kwargs in getattr(self, "waiting", []):
            self.checkpoint_io.save_checkpoint(*args, **kwargs)
        self.waiting = []


class Writer(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            trainer.strategy.checkpoint_io.write()


def test_a_file_goes_only_when_the_next_is_written_however_late_that_is(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=2)
    folder = Folder(tmp_path)
    save(pruning(), saver, Writer(), folder, plugins=[Late()])
    assert folder.steps


class OwnSaver(ModelCheckpoint):
    """A class of the user's own."""


def test_a_class_derived_from_the_checkpoint_callback(tmp_path):
    saver, folder = OwnSaver(tmp_path, "{epoch}", monitor="val_loss"), Folder(tmp_path)
    save(pruning(), saver, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=6.ckpt"]


def test_a_score_measured_before_the_target_counts_for_no_file_after_it(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss", every_n_train_steps=1)
    folder = Folder(tmp_path)
    save(pruning(), saver, folder, check_val_every_n_epoch=2)  # epoch 1 has 0.1, epoch 3 0.9, epoch 5 0.8
    assert float(saver.best_model_score) == pytest.approx(0.8)
    assert reached(saver.best_model_path) == 0.5


def test_a_fit_cut_short_between_the_target_and_the_next_validation_goes_on_waiting(tmp_path):
    class Dies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 11:
                raise KeyError("died")

    def made(folder):
        saver = ModelCheckpoint(folder, "{step}", monitor="val_loss", every_n_train_steps=1, save_last=True)
        return saver, EarlyStopping("val_loss", patience=99), pruning(window=Window(begin=8, end=9, unit="step"))

    class Plain(WrittenLosses):
        scheduler = plateau(monitor="val_loss", strict=False)

    with pytest.raises(KeyError, match="died"):
        save(*made(tmp_path), Dies(), module=Plain(), check_val_every_n_epoch=2)
    saver, stopper, _ = callbacks = made(tmp_path)
    trainer = save(*callbacks, module=Plain(), ckpt_path=tmp_path / "last.ckpt", check_val_every_n_epoch=2)
    assert float(saver.best_model_score) == pytest.approx(0.8)  # epoch 1 was validated with 0.1, epochs 3 and 5 later
    assert float(stopper.best_score) == pytest.approx(0.8)
    assert trainer.lr_scheduler_configs[0].scheduler.best == pytest.approx(0.8)


def test_a_fit_that_ends_before_the_pruned_model_was_measured_says_that_there_is_no_best(tmp_path):
    saver = ModelCheckpoint(tmp_path, monitor="val_loss")
    with pytest.warns(UserWarning, match=r"ended before 'val_loss' was measured .* has no best"):
        save(pruning(), saver, check_val_every_n_epoch=3, max_epochs=5)
    assert saver.best_model_path == ""
    assert list(tmp_path.iterdir())


def test_a_target_that_is_reached_before_the_fit_is_no_reason_to_keep_an_earlier_best(tmp_path):
    def saver():
        return ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=True)

    save(saver(), module=WrittenLosses(), max_epochs=3)
    module, qat, best, stopper = WrittenLosses(), QATFakeQuant(), saver(), EarlyStopping("val_loss", patience=9)
    qat.calibrate(module.net, [torch.ones(1, 4)])
    with pytest.warns(UserWarning, match=r"best of an earlier fit .* stay where they are"):
        save(qat, best, stopper, module=module, ckpt_path=tmp_path / "last.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"}
    assert float(stopper.best_score) == pytest.approx(0.2)


# The object itself.


def test_two_pruners_wait_for_the_later(tmp_path):
    class Pair(WrittenLosses):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def named(layer, epoch):
        window = Window(begin=epoch, end=epoch + 1, unit="epoch")
        return pruning(name=layer, targets=Targets(include=[layer]), window=window)

    saver, stopper = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss"), EarlyStopping("val_loss", patience=1)
    folder = Folder(tmp_path)
    trainer = save(named("net.0", 1), named("net.1", 4), saver, stopper, folder, module=Pair())
    assert trainer.current_epoch == 6
    assert Path(saver.best_model_path).name == "epoch=4.ckpt"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=4.ckpt"]
    assert float(stopper.best_score) == pytest.approx(0.7)


def test_the_trainers_callbacks_are_as_before_after_a_fit_and_after_an_exception(tmp_path):
    class Boom(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == TARGET + 1:
                raise KeyError("boom")

    stopper, saver = EarlyStopping("val_loss"), ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = save(pruning(), stopper, saver)
    assert not [entry for entry in trainer.callbacks if isinstance(entry, SuspendedMonitors)]
    assert not [key for entry in (stopper, saver) for key, value in vars(entry).items() if type(value) is PatchedMethod]
    callbacks = [pruning(), stopper, saver, Boom()]
    trainer = quiet(*callbacks, max_epochs=9, enable_checkpointing=True)
    with pytest.raises(KeyError):
        trainer.fit(WrittenLosses(), DataLoader(torch.zeros(BATCHES, 1)), DataLoader(torch.zeros(BATCHES, 1)))
    assert not [entry for entry in trainer.callbacks if isinstance(entry, SuspendedMonitors)]
    assert not [key for entry in (stopper, saver) for key, value in vars(entry).items() if type(value) is PatchedMethod]


def test_copies_made_in_a_fit_hold_no_other_callback(tmp_path):
    class Copy(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (own,) = [entry for entry in trainer.callbacks if isinstance(entry, SuspendedMonitors)]
            self.copies = [copy.deepcopy(own), pickle.loads(pickle.dumps(own))]  # noqa: S301  # our own bytes

    copier, saver = Copy(), ModelCheckpoint(tmp_path, monitor="val_loss")
    save(pruning(), saver, copier)
    for made in copier.copies:
        assert {**vars(made), "_patches": None} == {**vars(SuspendedMonitors()), "_patches": None}


def test_a_fit_that_the_class_of_the_other_namespace_runs(tmp_path):
    run_script(Path(__file__).with_name("monitors_of_pytorch_lightning.py"), tmp_path, cwd=tmp_path)


def test_two_ranks_keep_the_same_files(tmp_path):
    run_script(Path(__file__).with_name("monitors_on_two_ranks.py"), tmp_path, cwd=tmp_path)
