import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.errors import ShrinkError
from lightning_optim.pruning import Channel, MeanActivation, MetricDrop
from lightning_optim.schedule import Constant, Linear, Steps
from support import quiet, same

STRUCTURES = {"weight": None, "update": Channel(), "end": Channel(shrink="end"), "never": Channel(shrink="never")}
BATCHES = 3


class Scored(LightningModule):
    """Its score falls off a cliff beyond a share of zeros (or of channels that are gone); data depend on the step."""

    cliff = 0.5
    luck = ()  # epochs that score well, whatever the sparsity
    low = 0.6

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3)
        )

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(100 * self.current_epoch + batch_idx)
        x = torch.randn(6, 1, 6, 6, generator=generator)
        return F.cross_entropy(self.net(x), x.flatten(1)[:, :3].argmax(1))

    def gone(self):
        weight = self.net[0].weight
        channels = sum(bool(channel.any()) for channel in weight)
        return 1 - channels / 10 if self.by_channel else float((weight == 0).float().mean())

    by_channel = False

    def validation_step(self, batch, batch_idx):
        good = self.gone() <= self.cliff + 1e-6 or self.current_epoch in self.luck
        self.log("val/score", 0.9 if good else self.low)
        self.log("val/loss", 0.1 if good else 0.4)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=0.02)


class Ends(Callback):
    """What stands at the end of each validation, after the scheduler has judged."""

    def __init__(self):
        self.states, self.sparsities = [], []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.states.append(copy.deepcopy([pl_module.state_dict(), trainer.optimizers[0].state_dict()["state"]]))

    def on_train_epoch_end(self, trainer, pl_module):
        self.sparsities.append(trainer.callback_metrics.get("pruning/target_sparsity"))


class Tries(Callback):
    """The sparsity that each validation judges, and how often it changed since the one before."""

    def __init__(self, pruning):
        self.pruning, self.sparsities, self.changes = pruning, [], []
        self._last, self._count = None, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._count += self._last is not None and self.pruning.target_sparsity != self._last
        self._last = self.pruning.target_sparsity

    def on_validation_start(self, trainer, pl_module):
        self.sparsities.append(round(self.pruning.target_sparsity, 6))
        self.changes.append(self._count)
        self._count = 0


def scheduler(structure=None, values=(0.2, 0.4, 0.6, 0.8), length=None, **until):
    """Nothing goes in the first epoch; then a jump at the start of each. Nothing less is tried after too much."""
    return PruningScheduler(
        schedule=Steps(values=values),
        structure=structure,
        window=Window(begin=1, end=1 + (length or len(values)), unit="epoch"),
        until=MetricDrop(**{"monitor": "val/score", "max_drop": 0.1, "tolerance": 0.25, "patience": 0} | until),
    )


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, **{"max_epochs": 6, "num_sanity_val_steps": 0} | settings)
    trainer.fit(module, DataLoader(torch.arange(BATCHES)), DataLoader(torch.arange(1)), ckpt_path=ckpt_path)
    return trainer


def module_for(structure):
    module = Scored()
    module.by_channel = structure is not None
    return module


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_it_ends_at_the_last_sparsity_that_was_good_enough(structure):
    module, pruning, ends = module_for(structure), scheduler(structure), Ends()
    trainer = fit(module, pruning, ends)
    assert pruning.target_sparsity == 0.4
    assert float(trainer.callback_metrics["pruning/target_sparsity"]) == pytest.approx(0.4)
    assert float(trainer.callback_metrics["val/score"]) == pytest.approx(0.9)
    if structure is None:
        assert module.gone() == pytest.approx(round(0.4 * 90) / 90)
    else:
        assert sum(bool(channel.any()) for channel in module.net[0].weight) == 6
        assert module.net[0].out_channels == (10 if structure.shrink == "never" else 6)


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_the_last_good_state_comes_back_bit_for_bit(structure):
    # Epochs: unpruned, 0.2, 0.4, then 0.6 is too much.
    module, ends = module_for(structure), Ends()
    fit(module, scheduler(structure), ends, max_epochs=4)
    good, after = ends.states[2], ends.states[3]
    if structure is None or structure.shrink != "end":
        assert same(good[0], after[0])
    else:  # the state that was masked is cut now: as many channels are there as were alive
        alive = good[0]["net.0.weight"].flatten(1).any(1)
        assert torch.equal(good[0]["net.0.weight"][alive], after[0]["net.0.weight"])
    assert all(state["exp_avg"].isfinite().all() for state in after[1].values())  # those of the training since


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_every_parameter_trains_on_after_going_back(structure):
    module, ends = module_for(structure), Ends()
    trainer = fit(module, scheduler(structure), ends, max_epochs=5)
    before = ends.states[3][0]
    for name, parameter in module.named_parameters():
        assert parameter.shape == before[name].shape
        assert not torch.equal(parameter, before[name]), name
        assert any(parameter is known for group in trainer.optimizers[0].param_groups for known in group["params"])


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_a_resumed_fit_is_bit_equal_before_and_after_going_back(structure, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = module_for(structure)
    trainer = fit(whole, scheduler(structure), saver, enable_checkpointing=True)
    expected = [whole.state_dict(), trainer.optimizers[0].state_dict()]
    for step in (2, 3, 5, 8, 9, 12, 13, 16):  # 3, 9 and 12 lie just before a validation
        path = tmp_path / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        resumed, pruning = module_for(structure), scheduler(structure)
        trainer = fit(resumed, pruning, ckpt_path=path)
        assert same(expected, [resumed.state_dict(), trainer.optimizers[0].state_dict()]), step
        assert pruning.target_sparsity == 0.4


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_after_too_much_half_the_way_is_tried_until_good_and_bad_are_close(structure):
    module, pruning = module_for(structure), scheduler(structure, values=(0.8,), length=9, tolerance=0.1)
    tries = Tries(pruning)
    fit(module, tries, pruning, max_epochs=8)
    assert tries.sparsities == [0.0, 0.8, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5]
    assert module.gone() == pytest.approx(0.5)
    if structure is not None:
        assert module.net[0].out_channels == (10 if structure.shrink == "never" else 5)


def test_the_search_outlasts_the_window_and_ends_one_validation_before_the_fit():
    pruning = scheduler(values=(0.8,), length=3, tolerance=0.01)
    tries = Tries(pruning)
    fit(Scored(), tries, pruning, max_epochs=8)
    assert tries.sparsities == [0.0, 0.8, 0.4, 0.6, 0.5, 0.55, 0.525, 0.5]
    assert pruning.target_sparsity == 0.5


def test_a_fit_that_ends_in_the_middle_of_the_window_leaves_the_search_to_the_next(tmp_path):
    whole, parts = (scheduler(Channel(shrink="end"), values=(0.8,), length=6, tolerance=0.1) for _ in range(2))
    module, first, second = (module_for(Channel()) for _ in range(3))
    fit(module, whole, max_epochs=7)
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    fit(first, parts, saver, max_epochs=4, enable_checkpointing=True)
    assert first.net[0].out_channels == 10
    assert parts.target_sparsity == 0.4
    fit(second, parts, max_epochs=7, ckpt_path=tmp_path / "last.ckpt")
    assert parts.target_sparsity == whole.target_sparsity == 0.5
    assert same(dict(module.state_dict()), dict(second.state_dict()))


def test_one_sparsity_is_tried_between_two_validations():
    pruning = PruningScheduler(
        schedule=Linear(end=0.8),
        window=Window(begin=3, end=12, every=1, unit="step"),
        until=MetricDrop(monitor="val/score", max_drop=0.1, tolerance=0.04, patience=0),
    )
    tries = Tries(pruning)
    fit(Scored(), tries, pruning, max_epochs=6)
    assert max(tries.changes) == 1
    # Each epoch is three jumps of 0.8 / 9; 0.8 * 6 / 9 at the third is too much, and half the way back is good.
    assert tries.sparsities == pytest.approx(
        [0.0, 0.8 / 9, *(0.8 * tenths / 90 for tenths in (30, 60, 45, 45))], abs=1e-6
    )
    assert pruning.target_sparsity == pytest.approx(0.4)


def test_the_schedule_stands_still_while_it_rests():
    module, pruning = Scored(), scheduler(patience=2, tolerance=0.01)
    module.cliff, module.luck = 0.3, (4, 5, 6)
    tries = Tries(pruning)
    fit(module, tries, pruning, max_epochs=7)
    assert tries.sparsities == [0.0, 0.2, 0.4, 0.4, 0.4, 0.6, 0.6]


def activation(**keywords):
    """As ``scheduler``, for channels and by what goes through them."""
    plain = scheduler(Channel(), **keywords)
    return PruningScheduler(
        criterion=MeanActivation(),
        structure=Channel(),
        schedule=plain.schedule,
        window=plain.window,
        until=plain.until,
    )


SEARCHES = {
    "weight": lambda **keywords: scheduler(patience=1, **keywords),
    "update": lambda **keywords: scheduler(Channel(), **keywords),
    "end": lambda **keywords: scheduler(Channel(shrink="end"), **keywords),
    "activation": activation,
    "recovery": lambda **keywords: scheduler(Channel(), **keywords | {"patience": None}),
    "giving back": lambda **keywords: scheduler(Channel(), **keywords),
    "giving back weights": scheduler,
}


def interruptions():
    """Kinds of search, and steps to resume from: those that 3 divides lie just before a validation."""
    for kind in SEARCHES:
        yield pytest.param(kind, (6, 13), id=kind)
        further = [] if kind in ("weight", "update") else pytest.mark.slow
        yield pytest.param(kind, (4, 8, 9, 18), id=f"{kind} further", marks=further)


@pytest.mark.parametrize(("kind", "steps"), list(interruptions()))
def test_a_fit_resumed_in_the_middle_of_a_search_is_bit_equal(kind, steps, tmp_path):
    structure = None if "weight" in kind else Channel()

    def pruning():
        return SEARCHES[kind](values=(0.8,), length=8, tolerance=0.02)

    def module():
        made = module_for(structure)
        made.low = 0.75 if "giving" in kind else 0.6
        return made

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, first = module(), pruning()
    trainer = fit(whole, first, saver, max_epochs=9, enable_checkpointing=True)
    expected = [whole.state_dict(), trainer.optimizers[0].state_dict()]
    assert first.target_sparsity not in (0.0, 0.4, 0.8)
    for step in steps:
        resumed, again = module(), pruning()
        trainer = fit(resumed, again, max_epochs=9, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert same(expected, [resumed.state_dict(), trainer.optimizers[0].state_dict()]), step
        assert again.target_sparsity == first.target_sparsity


def test_a_score_counts_for_a_monitor_unless_training_went_back_from_what_it_was_of(tmp_path):
    def lowest(pruning, **settings):
        saver = ModelCheckpoint(tmp_path, monitor="val/score", mode="min")
        stopper = EarlyStopping("val/score", patience=9)
        fit(module_for(None), pruning, saver, stopper, enable_checkpointing=True, **settings)
        return [round(float(best), 6) for best in (saver.best_model_score, stopper.best_score)]

    assert lowest(scheduler()) == [0.9, 0.9]  # 0.6 was of a state that training went back from
    assert lowest(scheduler(values=(0.2, 0.4)), max_epochs=3) == [0.9, 0.9]  # the last score is of the state that stays


def test_early_stopping_does_not_judge_the_validation_that_a_resumed_fit_catches_up_on(tmp_path):
    def pruning():
        return scheduler(values=(0.8,), length=6, tolerance=0.02)

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(module_for(None), first := pruning(), saver, max_epochs=7, enable_checkpointing=True)
    at_once = EarlyStopping("val/score", stopping_threshold=1.0, check_on_train_epoch_end=False)
    again = pruning()
    trainer = fit(module_for(None), again, at_once, max_epochs=7, ckpt_path=tmp_path / "step=6.ckpt")
    assert again.target_sparsity == first.target_sparsity
    assert trainer.current_epoch == 7


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_little_that_was_missing_gives_back_what_was_pruned_since_and_keeps_the_training(structure):
    class Before(Callback):
        """The weights that each validation sees."""

        def __init__(self):
            self.weights = []

        def on_validation_start(self, trainer, pl_module):
            self.weights.append(pl_module.net[0].weight.detach().clone())

    module, pruning, before, ends = (
        module_for(structure),
        scheduler(structure, values=(0.8,), length=8),
        Before(),
        Ends(),
    )
    module.low = 0.75  # 0.05 below the limit, where 0.1 may be lost
    fit(module, pruning, before, ends, max_epochs=3)
    dense, masked, given = before.weights[0], before.weights[1], ends.states[1][0]["net.0.weight"]
    gone = masked == 0
    assert gone.any()
    assert torch.equal(given[gone], dense[gone])
    assert torch.equal(given[~gone], masked[~gone])


def sizes_of_files(folder, pruning):
    """Size of each epoch's file, and whether it holds a copy of the last good state."""
    found = []
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2])):
        guard = torch.load(path, weights_only=True)["callbacks"][pruning.state_key]["guard"]
        found.append((path.stat().st_size, "modules" in guard["good"]))
    return found


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_a_checkpoint_holds_a_copy_only_while_the_live_state_is_not_the_good_one(structure, tmp_path):
    module, pruning = module_for(structure), scheduler(structure, patience=1)
    fit(module, pruning, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), enable_checkpointing=True)
    # Epochs: unpruned, 0.2, 0.4, then 0.6 is too much twice: it is waited for, and training goes back.
    assert [has_copy for _, has_copy in sizes_of_files(tmp_path, pruning)] == [False, False, False, True, False, False]


def test_evidence_of_a_model_that_is_no_more_is_forgotten():
    class Evidence(Callback):
        """How many layers something is known of, after each validation."""

        def __init__(self):
            self.known = []

        def on_validation_end(self, trainer, pl_module):
            (rank,) = pruning.state_dict()["evidence"]["ranks"]
            self.known.append(len(rank["mean absolute activation"]["totals"]))

    pruning, seen = activation(values=(0.8,), length=5), Evidence()
    fit(module_for(Channel()), pruning, seen, max_epochs=2)
    assert seen.known == [2, 0]


def test_files_at_the_end_are_of_the_state_gone_back_to(tmp_path):
    module = module_for(Channel())
    saver = ModelCheckpoint(tmp_path, monitor="val/score", mode="max", save_last=True)
    fit(module, scheduler(Channel()), saver, max_epochs=4, enable_checkpointing=True)
    for path in (saver.best_model_path, saver.last_model_path):
        assert len(torch.load(path, weights_only=True)["state_dict"]["net.0.weight"]) == 6


def test_fine_tuning_may_recover_within_the_patience():
    module, pruning = Scored(), scheduler(patience=1)
    module.luck = (4,)  # 0.6 is bad in epoch 3, rests, is good in epoch 4; then 0.8 is bad twice
    fit(module, pruning, max_epochs=8)
    assert pruning.target_sparsity == 0.6


def test_nothing_more_goes_while_the_metric_is_below():
    module, pruning, ends = Scored(), scheduler(patience=9), Ends()
    fit(module, pruning, ends, max_epochs=6)
    assert [None if value is None else round(float(value), 1) for value in ends.sparsities[:5]] == [
        0,
        0.2,
        0.4,
        0.6,
        0.6,
    ]
    assert pruning.target_sparsity == 0.4  # the fit ends below: it goes back


def test_a_step_that_no_validation_has_judged_is_taken_back():
    module, pruning = Scored(), scheduler()
    fit(module, pruning, max_epochs=3, check_val_every_n_epoch=2)  # epoch 1 is judged before pruning, epoch 2 prunes
    assert pruning.target_sparsity == 0.0
    assert module.gone() == 0.0


def test_even_the_first_step_can_be_too_much():
    module, pruning, ends = Scored(), scheduler(values=(0.9,)), Ends()
    fit(module, pruning, ends, max_epochs=2)
    assert pruning.target_sparsity == 0.0
    assert module.gone() == 0.0
    assert same(ends.states[0][0], ends.states[1][0])


def test_a_model_that_is_pruned_from_the_start_is_validated_before_its_first_batch():
    module, ends = Scored(), Ends()
    until = MetricDrop(monitor="val/score", max_drop=0.1)
    pruning = PruningScheduler(schedule=Constant(value=0.3), until=until)
    fresh = copy.deepcopy(module.state_dict())
    fit(module, pruning, ends)
    assert len(ends.states) == 7
    assert same(dict(fresh), dict(ends.states[0][0]))
    assert (ends.states[1][0]["net.0.weight"] == 0).any()
    assert pruning.target_sparsity == 0.3


def test_a_model_that_was_still_to_be_trained_is_warned_of():
    module = Scored()
    module.validation_step = lambda batch, batch_idx: module.log("val/score", 0.1 + 0.1 * module.global_step)
    until = MetricDrop(monitor="val/score", max_drop=0.01)
    with pytest.warns(UserWarning, match="far better than before pruning: was the model still to be trained"):
        fit(module, PruningScheduler(schedule=Constant(value=0.3), until=until), max_epochs=2)


def test_with_a_reference_pruning_begins_at_once():
    module, ends = Scored(), Ends()
    until = MetricDrop(monitor="val/score", max_drop=0.1, reference=0.9)
    pruning = PruningScheduler(schedule=Constant(value=0.9), until=until)
    fit(module, pruning, ends, max_epochs=1)
    assert pruning.target_sparsity == 0.0
    assert module.gone() == 0.0


def test_a_loss_may_rise_only_so_far():
    pruning = scheduler(monitor="val/loss", mode="min", max_drop=0.2)
    fit(Scored(), pruning)
    assert pruning.target_sparsity == 0.4


@pytest.mark.parametrize("first", [True, False])
def test_an_averaged_copy_goes_back_with_the_model(first):
    module, pruning = module_for(Channel()), scheduler(Channel())
    average = EMAWeightAveraging(decay=0.5)
    fit(module, *([average, pruning] if first else [pruning, average]))
    assert module.net[0].out_channels == 6
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_metric_that_is_not_logged_is_told_at_the_first_validation():
    with pytest.raises(ValueError, match=r"needs 'val/accuracy', but validation logged \['val/loss', 'val/score'\]"):
        fit(Scored(), scheduler(monitor="val/accuracy"))


def test_a_fit_without_validation_is_refused_before_anything_changes():
    module = Scored()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="this fit has none"):
        fit(module, scheduler(), limit_val_batches=0)
    assert same(dict(before), dict(module.state_dict()))


def test_a_fit_that_ends_before_its_first_validation_says_so():
    with pytest.raises(ValueError, match="ended before the first one"):
        fit(Scored(), scheduler(), max_epochs=2, check_val_every_n_epoch=5)


def test_a_metric_that_is_no_number_counts_as_too_low():
    module = Scored()
    module.validation_step = lambda batch, batch_idx: module.log(
        "val/score", math.nan if module.current_epoch == 2 else 0.9
    )
    pruning = scheduler()
    fit(module, pruning, max_epochs=4)
    assert pruning.target_sparsity == 0.2


def test_sharded_weights_are_refused():
    class FSDPStrategy:
        launcher = None

    class Stub:
        strategy, callbacks = FSDPStrategy(), ()

    with pytest.raises(ShrinkError, match="until, rewind and regrow cannot be used under FSDPStrategy"):
        scheduler().setup(Stub(), Scored(), "fit")
