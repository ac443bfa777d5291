"""Every callback that has a window reads the same clock, whatever the Trainer counts."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

TOTAL = 8  # batches of each fit
WHOLE = {  # the whole fit, for callbacks with a window
    "pruning_scheduler": ["window.end=null", f"window.every={1 / TOTAL}"],
    "qat_fake_quant": ["window.end=null"],
    "distillation_teacher": ["window={_target_: lightning_optim.Window}"],
    "dropout_scheduler": ["window={_target_: lightning_optim.Window}"],
    "batch_mixer": ["window={_target_: lightning_optim.Window}"],
    "penalty_regularizer": ["window={_target_: lightning_optim.Window}"],
    "sharpness_aware": ["window={_target_: lightning_optim.Window}"],
}
FITS = {
    "epochs": ({}, 1),
    "steps": ({"max_steps": TOTAL, "max_epochs": -1}, 1),
    "accumulated": ({"accumulate_grad_batches": 2}, 2),
    "accumulated steps": ({"accumulate_grad_batches": 2, "max_steps": TOTAL // 2, "max_epochs": -1}, 2),
    "limited": ({"limit_train_batches": 2, "max_epochs": TOTAL // 2}, 1),
}


def make(case):
    return case.make(*(f"callbacks.{case.callback}.{text}" for text in WHOLE[case.callback]))


class Readings(Callback):
    """What a callback has read in each batch, from the state that it would save."""

    def __init__(self, callback):
        self.callback, self.seen = callback, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.callback.state_dict()["progress"]["reached"])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        pytest.param(*each, id=key, marks=[] if key in ("accumulated steps", "limited") else pytest.mark.crossed)
        for key, each in FITS.items()
    ],
)
def test_progress_is_the_share_of_the_batches_that_are_done(case, kit, settings, size):
    if case.callback not in WHOLE:
        return
    callback = make(case)
    readings = Readings(callback)
    kit.fit(case.module(), callback, readings, **settings)
    jump = size if case.callback == "pruning_scheduler" else 1  # which acts where a step begins
    assert readings.seen == [batch // jump * jump / TOTAL for batch in range(TOTAL)]


def test_scheduled_accumulation_is_foreseen(case, kit):
    if case.callback not in WHOLE:
        return
    callback = make(case)
    readings = Readings(callback)
    # 4 steps in the first epoch, 2 in the second
    kit.fit(case.module(), callback, readings, GradientAccumulationScheduler({1: 2}), max_steps=6, max_epochs=-1)
    skipped = {5, 7} if case.callback == "pruning_scheduler" else set()
    assert readings.seen == [(batch - (batch in skipped)) / TOTAL for batch in range(TOTAL)]


def test_several_optimizers_take_one_step_a_batch(case, kit):
    class TwoOptimizers(kit.ManualModule):
        def configure_optimizers(self):
            both = [torch.optim.SGD(self.net.parameters(), 0.01) for _ in range(2)]
            return both, [torch.optim.lr_scheduler.ConstantLR(each, factor=1.0) for each in both]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(kit.Module.training_step(self, batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

    if case.runs_steps_twice:
        return  # of which the law of manual optimization shows that it is refused
    if case.callback == "nas_supernet":
        callback = case.make()
        kit.fit(case.module(kind=TwoOptimizers), callback, max_steps=2 * TOTAL, max_epochs=-1)
        assert all(sum(counts.values()) == TOTAL for counts in callback.counts.values())
        return
    callback = make(case)
    readings = Readings(callback)
    kit.fit(case.module(kind=TwoOptimizers), callback, readings, max_steps=2 * TOTAL, max_epochs=-1)
    assert readings.seen == pytest.approx([batch / TOTAL for batch in range(TOTAL)])


@pytest.mark.parametrize("settings", [{"max_epochs": 2}, {"max_epochs": -1}, {"max_time": "00:00:00:30"}], ids=str)
def test_a_total_that_nobody_knows_is_refused_before_anything_changes(case, kit, settings):
    if case.callback not in WHOLE:
        return
    module, callback = case.module(), make(case)
    before = copy.deepcopy(dict(module.state_dict()))
    with pytest.raises(ValueError, match=r"a window in fractions of the fit needs .* set max_steps"):
        kit.trainer(callback, **{"max_epochs": None} | settings).fit(module, DataLoader(Stream()), kit.loader(2))
    kit.same(before, dict(module.state_dict()))


def test_data_without_a_length_end_by_steps(case, kit):
    if case.callback not in WHOLE:
        return
    callback = make(case)
    readings = Readings(callback)
    trainer = kit.trainer(callback, readings, max_steps=TOTAL, max_epochs=-1)
    trainer.fit(case.module(), DataLoader(Stream(), collate_fn=kit.with_labels), kit.loader(2))
    assert readings.seen == [batch / TOTAL for batch in range(TOTAL)]


def test_a_fit_that_goes_on_for_longer_waits_until_it_has_caught_up(case, kit, tmp_path):
    if case.callback not in WHOLE:
        return
    saver = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1, save_on_train_epoch_end=False
    )
    kit.fit(case.module(), make(case), saver, enable_checkpointing=True)
    callback = make(case)
    readings = Readings(callback)
    kit.fit(case.module(seed=9), callback, readings, ckpt_path=tmp_path / "step=5.ckpt", max_epochs=4)
    steps = [batch / (2 * TOTAL) for batch in range(5, 2 * TOTAL)]
    if case.callback == "pruning_scheduler":
        steps = [step // (1 / TOTAL) / TOTAL for step in steps]  # in its jumps
    assert readings.seen == [max(0.5, step) for step in steps]
