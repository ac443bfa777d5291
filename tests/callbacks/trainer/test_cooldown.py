import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch.utils.data import DataLoader

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


def fit(module, cooled, **settings):
    trainer = quiet(cooled, **{"max_epochs": 2, "num_sanity_val_steps": 0} | settings)
    trainer.fit(module, DataLoader(torch.arange(4)), DataLoader(torch.arange(1)))
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
