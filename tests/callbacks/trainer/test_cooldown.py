import copy
import warnings
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch.utils.data import DataLoader, IterableDataset

from lightning_optim.callbacks.trainer.cooldown import Cooldown
from support import quiet


class Net(LightningModule):
    """One weight whose gradient is 1: each step moves it by the learning rate."""

    def __init__(self, *, is_manual=False, fails_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.other = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = not is_manual
        self.fails_at, self.places = fails_at, []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise RuntimeError("stop")
        self.places.append(self.weight.item())
        loss = self.weight + self.other
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        groups = [{"params": [self.weight]}, {"params": [self.other], "lr": torch.tensor(0.5)}]
        return torch.optim.SGD(groups, lr=1.0)


class Cooled(Callback):
    def __init__(self, share):
        self.cooldown, self.rates = Cooldown(share), []

    def on_train_start(self, trainer, pl_module):
        self.cooldown.attach(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.cooldown.note_batch(trainer)

    def on_train_batch_end(self, trainer, *_):
        self.rates.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])

    def on_exception(self, trainer, pl_module, exception):
        self.held = copy.deepcopy(trainer.optimizers[0].param_groups[0]["lr"])
        self.cooldown.release()
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Endless(IterableDataset):
    """Four batches, as many as nobody knows beforehand."""

    def __iter__(self):
        return iter(torch.arange(4))


def fit(module, cooled, data=None, **settings):
    trainer = quiet(cooled, **{"max_epochs": 2, "num_sanity_val_steps": 0} | settings)
    trainer.fit(module, DataLoader(torch.arange(4) if data is None else data), DataLoader(torch.arange(1)))
    return [
        before - after for before, after in zip(module.places, [*module.places[1:], module.weight.item()], strict=True)
    ]


@pytest.mark.parametrize("is_manual", [False, True])
def test_the_rate_falls_to_zero_before_each_validation_and_returns(is_manual):
    module, cooled = Net(is_manual=is_manual), Cooled(0.5)
    assert fit(module, cooled) == pytest.approx(2 * [1.0, 1.0, 1.0, 0.5])
    assert module.other.item() == pytest.approx(-3.5)  # of another group, whose rate is a tensor
    assert cooled.rates == 8 * [[1.0, 0.5]]


def test_a_share_of_one_lets_it_fall_all_the_way():
    assert fit(Net(), Cooled(1.0)) == pytest.approx(2 * [1.0, 0.75, 0.5, 0.25])


def test_a_share_of_zero_leaves_it_alone():
    module, cooled = Net(), Cooled(0.0)
    assert fit(module, cooled) == pytest.approx(8 * [1.0])
    assert not module.optimizers().optimizer._optimizer_step_pre_hooks


def test_a_step_that_fails_leaves_the_users_rate():
    cooled = Cooled(1.0)
    with pytest.raises(RuntimeError, match="stop"):
        fit(Net(fails_at=3), cooled)
    assert (cooled.held, cooled.rates[-1]) == (0.25, 1.0)


@pytest.mark.parametrize(
    ("share", "data", "settings", "why"),
    [
        (0.5, Endless(), {}, "the data have no length; validate after a number of batches"),
        (0.5, None, {"val_check_interval": timedelta(hours=1), "check_val_every_n_epoch": None}, "by wall time"),
        (0.25, None, {}, "only 4 batches lie between two validations; validate less often, or raise it"),
    ],
)
def test_a_fit_in_which_the_rate_can_never_fall_says_so_once(share, data, settings, why):
    with pytest.warns(UserWarning, match=f"cooldown={share:g} has no effect here.*{why}") as told:
        assert fit(Net(), Cooled(share), data, **settings) == pytest.approx(8 * [1.0])
    assert sum("cooldown" in str(each.message) for each in told) == 1


@pytest.mark.parametrize(
    ("share", "data", "settings"),
    [
        (0.0, Endless(), {}),
        (0.5, Endless(), {"val_check_interval": 4, "check_val_every_n_epoch": None}),
        (0.5, Endless(), {"limit_train_batches": 4}),
        (0.25, None, {"check_val_every_n_epoch": 2}),
    ],
)
def test_a_fit_in_which_it_falls_or_is_left_alone_says_nothing(share, data, settings):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        moves = fit(Net(), Cooled(share), data, **settings)
    assert not any("cooldown" in str(each.message) for each in told)
    assert (min(moves) < 1.0) == bool(share)
