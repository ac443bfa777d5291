import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_optim import Window
from lightning_optim.schedule import Linear, Steps
from written_losses import BATCHES, LOSSES, TARGET, WrittenLosses, fit, plateau, pruning, save

# Early stopping.


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("monitor", ["val_loss", "count"])
def test_early_stopping_compares_pruned_models_alone(ends, monitor):
    stopper = EarlyStopping(monitor, patience=3, check_on_train_epoch_end=ends)
    trainer = fit(pruning(), stopper)
    assert trainer.current_epoch == len(LOSSES)
    assert float(stopper.best_score) in (60, pytest.approx(0.6))


def test_early_stopping_does_not_take_a_score_measured_before_the_target():
    stopper = EarlyStopping("val_loss", patience=99, check_on_train_epoch_end=True)
    fit(pruning(window=Window(begin=2, end=3, unit="epoch")), stopper, check_val_every_n_epoch=2)
    assert float(stopper.best_score) == pytest.approx(0.8)  # epoch 1 was validated with 0.1, epochs 3 and 5 later


def test_early_stopping_stops_a_pruned_model_that_gets_no_better():
    class Worse(WrittenLosses):
        losses = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

    stopper = EarlyStopping("val_loss", patience=2)
    trainer = fit(pruning(), stopper, module=Worse())
    assert (trainer.current_epoch, stopper.stopped_epoch, float(stopper.best_score)) == (6, 5, pytest.approx(0.4))


class JudgesItself(EarlyStopping):
    """Judges in a hook of its own, as Lightning's documentation shows."""

    def on_validation_end(self, trainer, pl_module): ...

    def on_train_epoch_end(self, trainer, pl_module): ...

    def on_train_epoch_start(self, trainer, pl_module):
        if "val_loss" in trainer.callback_metrics:
            self._run_early_stopping_check(trainer)


def test_early_stopping_that_judges_in_another_hook_waits_too():
    stopper = JudgesItself("val_loss", patience=1)
    trainer = fit(pruning(), stopper)
    assert (trainer.current_epoch, float(stopper.best_score)) == (7, pytest.approx(0.7))


class Brings(WrittenLosses):
    """Brings its own early stopping."""

    def configure_callbacks(self):
        self.stopper = EarlyStopping("val_loss", patience=1)
        return [self.stopper]


def test_early_stopping_that_the_module_brings_waits_too():
    module = Brings()
    trainer = fit(pruning(), module=module)
    assert (trainer.current_epoch, float(module.stopper.best_score)) == (6, pytest.approx(0.7))


def test_a_class_of_the_users_own_that_has_only_the_name_is_left_alone():
    kind = type("EarlyStopping", (Callback,), {"on_train_epoch_end": lambda self, *_: calls.append(1)})
    calls = []
    fit(pruning(), kind())
    assert len(calls) == len(LOSSES)


def test_what_early_stopping_remembers_of_an_earlier_run_is_forgotten(tmp_path):
    class Worse(WrittenLosses):
        losses = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

    stopper = EarlyStopping("val_loss", patience=2)
    first = fit(stopper, module=Worse())
    assert stopper.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    first.save_checkpoint(tmp_path / "dense.ckpt")
    again = EarlyStopping("val_loss", patience=2)
    fit(pruning(), again, ckpt_path=tmp_path / "dense.ckpt")
    assert (again.stopping_reason, again.stopped_epoch) == (EarlyStoppingReason.NOT_STOPPED, 0)
    assert float(again.best_score) == pytest.approx(0.6)


# Metrics of training.


class Trained(WrittenLosses):
    """The loss of training, written down by epoch and batch: low before the target."""

    on_step = False

    def training_step(self, batch, batch_idx):
        before = (self.current_epoch, batch_idx) < (TARGET, 2)
        self.log("loss", 0.0 if before else 1.0 - 0.1 * self.current_epoch, on_step=self.on_step, on_epoch=True)
        self.log("now", 0.0 if before else 1.0 - 0.1 * self.current_epoch)
        return super().training_step(batch, batch_idx)


class Both(Trained):
    on_step = True


@pytest.mark.parametrize("kind", [Trained, Both])
@pytest.mark.parametrize("validates", [True, False])
def test_an_epoch_that_was_trained_half_before_the_target_does_not_count(tmp_path, kind, validates):
    middle = pruning(window=Window(begin=TARGET * BATCHES + 2, end=TARGET * BATCHES + 3, unit="step"))
    saver = ModelCheckpoint(tmp_path, "{epoch}", monitor="loss")
    stopper = EarlyStopping("loss", patience=9)
    settings = {} if validates else {"limit_val_batches": 0}
    save(middle, saver, stopper, module=kind(), **settings)
    assert float(saver.best_model_score) == float(stopper.best_score) == pytest.approx(0.4)
    assert Path(saver.best_model_path).name == "epoch=6.ckpt"


def test_a_metric_of_a_batch_counts_from_the_first_batch_on(tmp_path):
    middle = pruning(window=Window(begin=TARGET * BATCHES + 2, end=TARGET * BATCHES + 3, unit="step"))
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="now", every_n_train_steps=1, save_top_k=99, mode="max")
    save(middle, saver, module=Trained())
    steps = sorted(int(Path(path).stem.split("=")[1]) for path in saver.best_k_models)
    assert steps == [*range(TARGET * BATCHES + 3, len(LOSSES) * BATCHES + 1)]


# Schedulers of the learning rate.


class Holder:
    """A scheduler of the user's own around a plateau scheduler."""

    def __init__(self, optimizer):
        self.optimizer, self.inner = optimizer, [ReduceLROnPlateau(optimizer, patience=1)]

    def step(self, metric):
        self.inner[0].step(metric)

    def state_dict(self):
        return self.inner[0].state_dict()

    def load_state_dict(self, state):
        self.inner[0].load_state_dict(state)


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Plateau(WrittenLosses):
    losses = (0.5, 0.1, 0.2, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3)
    scheduler = plateau(monitor="val_loss")


def test_a_plateau_scheduler_compares_pruned_models_alone():
    rates = Rates()
    fit(rates, module=Plateau(), max_epochs=9)
    assert min(rates.rates) < 0.02  # without pruning the best of epoch 1 stands
    rates = Rates()
    fit(pruning(), rates, module=Plateau(), max_epochs=9)
    assert rates.rates == [0.1] * 9


def test_a_plateau_scheduler_does_not_take_a_score_measured_before_the_target():
    class Patient(Plateau):
        scheduler = plateau(monitor="val_loss", strict=False)

    for begin, every in ((2, 2), (4, 4)):  # validated just before, and then after two epochs, and after four
        rates, window = Rates(), Window(begin=begin, end=begin + 1, unit="epoch")
        fit(pruning(window=window), rates, module=Patient(), max_epochs=8, check_val_every_n_epoch=every)
        assert rates.rates == [0.1] * 8


def test_a_plateau_scheduler_asked_at_each_step():
    class Step(Plateau):
        scheduler = plateau(monitor="val_loss", interval="step", frequency=3, strict=False)

    rates = Rates()
    fit(pruning(), rates, module=Step(), max_epochs=9)
    assert rates.rates == [0.1] * 9


def test_a_plateau_scheduler_inside_another_class_is_reset_too():
    class Inside(Plateau):
        scheduler = staticmethod(
            lambda optimizer: {"scheduler": Holder(optimizer), "monitor": "val_loss", "reduce_on_plateau": True}
        )

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(metric)

    rates = Rates()
    fit(pruning(), rates, module=Inside(), max_epochs=9)
    assert rates.rates == [0.1] * 9


class Opaque(Holder):
    """One that holds no plateau scheduler."""

    def __init__(self, optimizer):
        self.optimizer, self.best = optimizer, math.inf

    def step(self, metric):
        self.best = min(self.best, metric)

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def test_a_scheduler_whose_best_cannot_be_reset_is_named():
    class Unknown(Plateau):
        scheduler = staticmethod(
            lambda optimizer: {"scheduler": Opaque(optimizer), "monitor": "val_loss", "reduce_on_plateau": True}
        )

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(metric)

    with pytest.warns(UserWarning, match="Opaque is given a metric, but is no ReduceLROnPlateau"):
        fit(pruning(), module=Unknown(), max_epochs=9)


def test_a_plateau_scheduler_starts_afresh_at_each_pruning_step():
    class Rising(Plateau):
        losses = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    rates = Rates()
    fit(pruning(schedule=Linear(end=0.8), window=Window(begin=1, end=9, unit="epoch", every=1)), rates, module=Rising(),
        max_epochs=9)  # fmt: skip
    assert rates.rates == [0.1] * 9


def test_a_plateau_scheduler_takes_no_old_score_after_any_pruning_step(tmp_path):
    class Rare(Plateau):
        scheduler = plateau(monitor="val_loss", strict=False)

    # Validated in epochs 3 and 7 only: between a step and the next validation the old score comes again and again.
    def once():
        return pruning(schedule=Steps(values=[0.3, 0.6]), window=Window(begin=4, end=14, unit="epoch"))

    settings = {"module": Rare(), "check_val_every_n_epoch": 4}
    rates = Rates()
    with pytest.warns(UserWarning, match="ends at a sparsity of 0.3"):
        fit(once(), rates, max_epochs=8, **settings)
    assert rates.rates == [0.1] * 8


def test_a_plateau_scheduler_that_the_module_steps_by_itself():
    class Own(Plateau):
        scheduler = None

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.plateau = ReduceLROnPlateau(optimizer, patience=1)
            return optimizer

        def on_validation_epoch_end(self):
            self.plateau.step(self.trainer.callback_metrics["val_loss"])

    rates = Rates()
    fit(pruning(), rates, module=Own(), max_epochs=9)
    assert rates.rates == [0.1] * 9


def test_before_the_first_pruning_step_a_plateau_scheduler_does_its_work():
    class Flat(Plateau):
        losses = (0.1,) * 9

    rates = Rates()
    fit(pruning(window=Window(begin=6, end=7, unit="epoch")), rates, module=Flat(), max_epochs=9)
    assert rates.rates[:6] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_two_plateau_schedulers_under_manual_optimization():
    class Manual(Plateau):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

        def on_validation_epoch_end(self):
            for scheduler in self.lr_schedulers():
                scheduler.step(self.trainer.callback_metrics["val_loss"])

        def configure_optimizers(self):
            found = [torch.optim.SGD([value], 0.1) for value in self.parameters()]
            return found, [ReduceLROnPlateau(optimizer, patience=1) for optimizer in found]

    module = Manual()
    trainer = fit(pruning(window=Window(begin=12, end=13, unit="step")), module=module, max_epochs=9)
    for config in trainer.lr_scheduler_configs:
        assert config.scheduler.best == pytest.approx(0.3)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.1, 0.1]
