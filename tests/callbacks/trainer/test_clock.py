"""The clock against a count by hand: what a fit did, batch by batch, is known once it has ended."""

import copy
import itertools

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_optim import Window
from lightning_optim.callbacks.trainer.clock import FitProgress, clock_after, clock_of
from support import quiet, same

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 5
UNITS = {"fraction": Window(), "step": Window(unit="step"), "epoch": Window(unit="epoch")}


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net(torch.ones(1)).sum()

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.net(torch.ones(1)).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Manual(Net):
    """So many optimizers, of which some step in some batches only."""

    every = (1,)

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizers = [self.optimizers()] if len(self.every) == 1 else self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        for optimizer, every in zip(
            optimizers if isinstance(optimizers, list) else [optimizers], self.every, strict=True
        ):
            if done % every == 0:
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.01) for _ in self.every]


class TwoOptimizers(Manual):
    every = (1, 1)


class SomeSteps(Manual):
    every = (1, 5)


class AccumulatesByHand(Manual):
    every = (4,)


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        return iter(range(LENGTH))


class Promises(Stream):
    """Data that are shorter than they say."""

    def __len__(self):
        return LENGTH + 3


class Recorder(Callback):
    """Progress through whole-fit windows at the start of each batch, and what a hand would count."""

    def __init__(self, units=UNITS):
        self.units = units
        self.clocks = {unit: FitProgress(window) for unit, window in units.items()}
        self.seen, self.counts, self.ends, self.validated = [], [], {}, {}

    def on_train_start(self, trainer, pl_module):
        for clock in self.clocks.values():
            clock.check(trainer)
        self.seen_at_start = self.read(trainer)

    def read(self, trainer):
        return {unit: clock.read(trainer) for unit, clock in self.clocks.items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step if pl_module.automatic_optimization else len(self.seen)
        self.counts.append((len(self.seen), step, (trainer.current_epoch, batch_idx)))
        self.seen.append(self.read(trainer))

    def on_train_batch_end(self, trainer, *_):
        self.after_batch = self.read(trainer)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.after_validation = self.validated[clock_of(trainer).batch] = self.read(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self.after_epoch = self.read(trainer)

    def on_train_end(self, trainer, pl_module):
        self.ends = self.read(trainer)
        self.total_steps = trainer.global_step if pl_module.automatic_optimization else len(self.seen)

    def state_dict(self):
        return {unit: clock.state_dict() for unit, clock in self.clocks.items()}

    def load_state_dict(self, state):
        for unit, clock in self.clocks.items():
            clock.load_state_dict(state[unit])

    def by_hand(self, length=LENGTH):
        """What each reading is once the whole fit is known."""
        batches, steps = len(self.seen), self.total_steps
        last_epoch, last_index = self.counts[-1][2]
        epochs = last_epoch + (last_index + 1) / length
        for batch, step, (epoch, index) in self.counts:
            yield {"fraction": batch / batches, "step": step / steps, "epoch": (epoch + index / length) / epochs}


def fit(recorder, module=None, data=None, ckpt_path=None, callbacks=(), **settings):
    data = DataLoader(torch.arange(LENGTH)) if data is None else data
    trainer = quiet(recorder, *callbacks, **{"max_epochs": 3, "num_sanity_val_steps": 0} | settings)
    trainer.fit(module or Net(), data, DataLoader(torch.arange(2)), ckpt_path=ckpt_path)
    return trainer


def check(recorder, length=LENGTH):
    """Progress is monotone, what a hand counts, and 1 where the fit ends."""
    for seen, expected in zip(recorder.seen, recorder.by_hand(length), strict=True):
        assert seen == pytest.approx({unit: expected[unit] for unit in recorder.units})
    check_monotone(recorder)


def check_monotone(recorder):
    check_monotone_until_the_end(recorder)
    whole = dict.fromkeys(recorder.units, 1.0)
    assert (recorder.after_batch, recorder.after_epoch, recorder.ends) == (whole, whole, whole)


def check_monotone_until_the_end(recorder):
    for before, after in itertools.pairwise([*recorder.seen, recorder.ends]):
        assert all(before[unit] <= after[unit] for unit in recorder.units)
    assert recorder.ends == dict.fromkeys(recorder.units, 1.0)


SETTINGS = {
    "epochs": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "accumulated more than an epoch": {"accumulate_grad_batches": 7},
    "steps": {"max_steps": 7, "max_epochs": -1},
    "steps, accumulated": {"max_steps": 7, "max_epochs": -1, "accumulate_grad_batches": 2},
    "steps first": {"max_steps": 7, "accumulate_grad_batches": 2},
    "epochs first": {"max_steps": 70, "accumulate_grad_batches": 2},
    "one step": {"max_steps": 1, "max_epochs": -1, "accumulate_grad_batches": 3},
    "time that does not run out": {"max_time": "00:01:00:00"},
    "at least": {"min_epochs": 1, "min_steps": 3},
    "validates often": {"val_check_interval": 2},
    "validates across epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "validates in parts of an epoch": {"val_check_interval": 0.5, "accumulate_grad_batches": 4},
    "no validation": {"limit_val_batches": 0},
}
LIMITS = {
    "limited by count": ({"limit_train_batches": 3}, 3),
    "limited by share": ({"limit_train_batches": 0.4}, 2),
    "overfit": ({"overfit_batches": 2}, 2),
    "overfit, accumulated": ({"overfit_batches": 2, "accumulate_grad_batches": 3}, 2),
    "a trial": ({"fast_dev_run": 2}, 2),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_progress_is_what_a_hand_counts(settings):
    fit(recorder := Recorder(), **settings)
    check(recorder)


@pytest.mark.parametrize(("settings", "length"), LIMITS.values(), ids=LIMITS.keys())
def test_limits_of_the_data_count(settings, length):
    fit(recorder := Recorder(), **settings)
    check(recorder, length)


@pytest.mark.parametrize(
    "limit", [{"max_epochs": 6}, {"max_steps": 17, "max_epochs": -1}], ids=lambda one: next(iter(one))
)
@pytest.mark.parametrize("plan", [{0: 1, 2: 3}, {0: 4, 1: 2, 3: 1}, {2: 9}], ids=str)
def test_scheduled_accumulation_is_foreseen(plan, limit):
    fit(recorder := Recorder(), callbacks=[GradientAccumulationScheduler(dict(plan))], **limit)
    check(recorder)


def test_accumulation_that_nobody_foresees_never_takes_progress_back():
    class Changes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.accumulate_grad_batches = (1, 4, 1, 2)[trainer.current_epoch % 4]

    fit(recorder := Recorder(), callbacks=[Changes()], max_steps=14, max_epochs=-1)
    check_monotone(recorder)


@pytest.mark.parametrize("kind", [Manual, TwoOptimizers])
@pytest.mark.parametrize("settings", [{}, {"max_steps": 24, "max_epochs": -1}, {"max_steps": 24}], ids=str)
def test_under_manual_optimization_a_step_is_a_batch(kind, settings):
    fit(recorder := Recorder(), kind(), **settings)
    check(recorder)


class Counted(Callback):
    def __init__(self):
        self.taken = []

    def on_train_batch_start(self, trainer, *_):
        self.taken.append(trainer.global_step)


@pytest.mark.parametrize("kind", [SomeSteps, AccumulatesByHand])
def test_where_batches_take_other_numbers_of_steps_the_end_is_found_as_they_come(kind):
    steps = Counted()
    fit(recorder := Recorder(), kind(), callbacks=[steps], max_steps=6, max_epochs=-1)
    assert [seen["fraction"] for seen in recorder.seen] == pytest.approx([step / 6 for step in steps.taken])
    check_monotone(recorder)
    fit(recorder := Recorder(), kind(), max_steps=99)
    check(recorder)


# Data whose length is not what the trainer says, or that have none.


@pytest.mark.parametrize(
    "settings", [{"max_epochs": 3}, {"max_epochs": -1}, {"max_epochs": -1, "max_time": "00:00:00:09"}], ids=str
)
@pytest.mark.parametrize("unit", ["fraction", "step"])
def test_an_unknown_total_is_refused_before_anything_changes(unit, settings):
    module = Net()
    before = copy.deepcopy(module.state_dict())
    data = DataLoader(Stream()) if settings["max_epochs"] > 0 else None
    why = "it has no end" if data is None else "its training data have no length"
    with pytest.raises(ValueError, match=f"{why}.*set max_steps"):
        fit(Recorder({unit: UNITS[unit]}), module, data, **settings)
    assert same(before, module.state_dict())


def test_epochs_of_data_without_a_length_are_counted_whole():
    units = {"epoch": UNITS["epoch"], "bounded": Window(end=2, unit="epoch"), "steps": Window(end=10, unit="step")}
    fit(recorder := Recorder(units), data=DataLoader(Stream()), max_epochs=4)
    batches = range(4 * LENGTH)
    assert [seen["epoch"] for seen in recorder.seen] == [batch // LENGTH / 4 for batch in batches]
    assert [seen["bounded"] for seen in recorder.seen] == [min(batch // LENGTH / 2, 1.0) for batch in batches]
    assert [seen["steps"] for seen in recorder.seen] == pytest.approx([min(batch / 10, 1.0) for batch in batches])
    with pytest.raises(ValueError, match="without an end needs a fit with one, but its training data have no length"):
        fit(Recorder({"epoch": UNITS["epoch"]}), data=DataLoader(Stream()), max_epochs=-1, max_steps=9)


@pytest.mark.parametrize("size", [1, 2])
def test_data_without_a_length_end_by_steps(size):
    units = {unit: UNITS[unit] for unit in ("fraction", "step")}
    settings = {"max_steps": 12, "accumulate_grad_batches": size}
    fit(recorder := Recorder(units), data=DataLoader(Stream()), max_epochs=-1, **settings)
    if size == 1:
        check(recorder)
    check_monotone(recorder)
    # Whichever comes first: the epochs that are over say more than the steps, once there are any.
    fit(recorder := Recorder(units), data=DataLoader(Stream()), max_epochs=2, **settings | {"max_steps": 1000})
    assert recorder.seen[LENGTH]["fraction"] == recorder.seen[-1]["fraction"] == 0.5
    check_monotone_until_the_end(recorder)


def test_a_whole_limit_gives_data_a_length():
    fit(recorder := Recorder(), data=DataLoader(Stream()), limit_train_batches=3)
    check(recorder, 3)


@pytest.mark.parametrize("settings", [{"max_epochs": 4}, {"max_steps": 11, "max_epochs": -1}], ids=str)
def test_data_that_are_shorter_than_they_say_never_take_progress_back(settings):
    fit(recorder := Recorder(), data=DataLoader(Promises()), **settings)
    check_monotone_until_the_end(recorder)


def test_epochs_that_a_hook_cuts_short_never_take_progress_back():
    class Skips(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == self.current_epoch else None

    fit(recorder := Recorder(), Skips(), max_epochs=4)
    check_monotone_until_the_end(recorder)


def test_data_of_another_length_in_each_epoch_never_take_progress_back():
    class Grows(Net):
        def train_dataloader(self):
            return DataLoader(torch.arange((4, 9, 2)[self.trainer.current_epoch]))

    recorder = Recorder()
    quiet(recorder, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(Grows())
    assert len(recorder.seen) == 15
    check_monotone_until_the_end(recorder)


# Fits that go on.

GOES_ON = {
    "epochs": {},
    "steps": {"max_steps": 13, "max_epochs": -1},
    "both": {"max_steps": 6, "max_epochs": 2},
    "accumulated": {"accumulate_grad_batches": 2},
}


def savers(folder):
    steps = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    return [steps, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)]


@pytest.mark.parametrize("kind", [Net, TwoOptimizers])
@pytest.mark.parametrize("settings", GOES_ON.values(), ids=GOES_ON.keys())
def test_a_resumed_fit_reads_what_an_uninterrupted_one_reads(kind, settings, tmp_path):
    if kind is TwoOptimizers and "accumulate_grad_batches" in settings:
        pytest.skip("Lightning refuses it")
    whole = Recorder()
    fit(whole, kind(), callbacks=savers(tmp_path), enable_checkpointing=True, **settings)
    # Under max_steps Lightning itself repeats part of an epoch that was saved at its end.
    paths = sorted(tmp_path.glob("step=*.ckpt")) + [tmp_path / "epoch=0.ckpt"] * ("max_steps" not in settings)
    for path in paths:
        loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["total"]["processed"]
        resumed = Recorder()
        fit(resumed, kind(), ckpt_path=path, **settings)
        assert resumed.seen == whole.seen[done:], path.name
        assert not resumed.seen or resumed.ends == whole.ends
        assert resumed.validated == {batch: whole.validated[batch] for batch in resumed.validated}, path.name


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_an_extended_fit_waits_until_it_has_caught_up(limit, unit, tmp_path):
    first, again = ({"max_epochs": 2}, {"max_epochs": 6})
    if limit == "max_steps":
        first, again = ({"max_steps": 10, "max_epochs": -1}, {"max_steps": 30, "max_epochs": -1})
    short = Recorder({unit: UNITS[unit]})
    fit(short, callbacks=savers(tmp_path), enable_checkpointing=True, **first)
    longer = Recorder({unit: UNITS[unit]})
    fit(longer, ckpt_path=tmp_path / "step=6.ckpt", **again)
    assert [seen[unit] for seen in longer.seen] == pytest.approx([max(0.6, batch / 30) for batch in range(6, 30)])
    assert longer.ends == {unit: 1.0}
    shorter = Recorder({unit: UNITS[unit]})
    fit(shorter, ckpt_path=tmp_path / "step=6.ckpt", **first | {limit: {"max_epochs": 3, "max_steps": 15}[limit]})
    assert [seen[unit] for seen in shorter.seen] == pytest.approx([max(0.6, batch / 15) for batch in range(6, 15)])


def test_a_trainer_that_goes_on_after_its_end_stays_there():
    recorder = Recorder()
    module = Net()
    trainer = fit(recorder, module, max_epochs=2)
    first = len(recorder.seen)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, DataLoader(torch.arange(LENGTH)))
    assert first == len(recorder.seen) / 2
    assert recorder.seen[first:] == [dict.fromkeys(UNITS, 1.0)] * first
    fit(recorder, module, max_epochs=1)  # another trainer begins at 0
    assert recorder.seen[2 * first] == dict.fromkeys(UNITS, 0.0)


def test_a_fit_that_ends_early_has_not_come_to_the_end():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step == 6

    fit(recorder := Recorder(), callbacks=[Stop()])
    assert len(recorder.seen) == 6
    assert recorder.after_batch == pytest.approx(dict.fromkeys(UNITS, 6 / 15))
    fit(recorder := Recorder(), max_time="00:00:00:00", max_epochs=4)
    assert recorder.seen == []


# What is read besides.


class Twice(Callback):
    """Steps that are entered, and the clock that was foretold for each step at the start."""

    def __init__(self):
        self.progress, self.entered, self.foretold = FitProgress(Window()), [], {}

    def on_train_start(self, trainer, pl_module):
        self.progress.check(trainer)
        steps = clock_of(trainer).total_steps
        self.foretold = {step: clock_after(trainer, step) for step in range(int(steps))}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.progress.enters_step(trainer):
            self.entered.append(clock_of(trainer))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_clock_of_a_later_step_is_known_before(settings):
    twice = Twice()
    fit(twice, **settings)
    assert twice.entered == [twice.foretold[clock.step] for clock in twice.entered]
    assert [clock.step for clock in twice.entered] == list(range(len(twice.foretold)))
