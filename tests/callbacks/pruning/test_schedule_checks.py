import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.callbacks.pruning.schedule_checks import closes_within_fit
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Constant, Linear
from support import quiet

BATCHES = 5


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(torch.randn(4, 4)), torch.arange(4) % 3)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Closing(Callback):
    def __init__(self, window):
        self.window = window

    def on_train_end(self, trainer, pl_module):
        self.is_within = closes_within_fit(trainer, self.window)


def warned(window, *callbacks, schedule=None, structure=None, **settings):
    """What a fit says of its window, the sparsity that it ends with, and whether the window closes within it."""
    pruning = PruningScheduler(schedule=schedule or Linear(end=0.8), window=window, structure=structure)
    closing = Closing(window)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet(pruning, closing, *callbacks, **settings).fit(Net(), DataLoader(torch.arange(BATCHES)))
    said = [str(one.message) for one in caught if "the window ends at" in str(one.message)]
    return said, pruning.target_sparsity, closing.is_within


SHORT = {
    "epochs": (Window(end=8, unit="epoch", every=1), {"max_epochs": 4}),
    "steps": (Window(end=20, unit="step", every=5), {"max_epochs": 2}),
    "max_steps": (Window(end=8, unit="step", every=2), {"max_steps": 7, "max_epochs": 9}),
    "epochs by max_steps": (Window(end=8, unit="epoch", every=1), {"max_steps": 11, "max_epochs": 9}),
    "accumulated": (Window(end=4, unit="epoch", every=0.1), {"max_epochs": 2, "accumulate_grad_batches": 2}),
    "whole fit": (Window(), {"max_epochs": 3, "accumulate_grad_batches": 2}),
    "whole fit by max_steps": (Window(), {"max_steps": 4, "max_epochs": -1, "accumulate_grad_batches": 2}),
    "limited": (Window(end=7, unit="step"), {"max_epochs": 2, "limit_train_batches": 3}),
}


@pytest.mark.parametrize(("window", "settings"), SHORT.values(), ids=SHORT.keys())
def test_a_fit_that_ends_first_says_at_which_sparsity(window, settings):
    said, sparsity, is_within = warned(window, **settings)
    assert len(said) == 1
    assert 0.0 < sparsity < 0.8
    assert f"it ends at a sparsity of {sparsity:.3g}, where the schedule would end at 0.8; let" in said[0]
    assert is_within == (window.end is None)


def test_it_says_that_nothing_will_shrink():
    said, sparsity, _ = warned(Window(end=6, unit="epoch", every=1), structure=Channel(shrink="end"), max_epochs=4)
    assert "shrink='end' does not come" in said[0]
    assert sparsity == pytest.approx(0.4)


def test_a_last_jump_at_the_very_end_comes_too_late():
    said, sparsity, is_within = warned(Window(end=4, unit="epoch", every=1), max_epochs=4)
    assert "ends at epoch 4" in said[0]
    assert sparsity == pytest.approx(0.6)
    assert is_within


LONG = {
    "closes": (Window(end=3, unit="epoch", every=1), None, {"max_epochs": 4}),
    "default": (None, None, {"max_epochs": 4}),
    "reached before": (Window(end=8, unit="epoch"), Constant(value=0.8), {"max_epochs": 2}),
    "accumulated": (Window(end=3.8, unit="epoch"), None, {"max_epochs": 4, "accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize(("window", "schedule", "settings"), LONG.values(), ids=LONG.keys())
def test_a_fit_that_reaches_the_schedules_end_says_nothing(window, schedule, settings):
    said, sparsity, is_within = warned(window or Window(end=0.75, every=0.0375), schedule=schedule, **settings)
    assert said == []
    assert sparsity == pytest.approx(0.8)
    assert is_within == (window is None or window.end < 4)


@pytest.mark.parametrize("plan", [{0: 1, 1: 3}, {0: 4, 2: 1}], ids=str)
def test_the_last_step_is_found_under_scheduled_accumulation(plan):
    said, sparsity, _ = warned(Window(), GradientAccumulationScheduler(plan), max_epochs=4)
    assert 0.0 < sparsity < 0.8
    assert f"it ends at a sparsity of {sparsity:.3g}, where" in said[0]
