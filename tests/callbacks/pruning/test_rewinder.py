import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.pruning import Channel, Rewind
from lightning_optim.schedule import Steps
from support import quiet, same

BATCHES, FIRST, SECOND, K = 4, 8, 12, 2


class Net(LightningModule):
    """Its data depend on the step, and its learning rate changes with every step."""

    has_schedule = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(100 * self.current_epoch + batch_idx)
        x = torch.randn(6, 1, 6, 6, generator=generator)
        return F.cross_entropy(self.net(x), x.flatten(1)[:, :3].argmax(1))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.02)
        if not self.has_schedule:
            return optimizer
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Starts(Callback):
    """What stands when each batch starts, before or after the scheduler, by the step."""

    def __init__(self):
        self.states, self.rates = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        moments = trainer.optimizers[0].state_dict()["state"]
        self.states[step] = copy.deepcopy([dict(pl_module.state_dict()), moments])
        self.rates[step] = trainer.optimizers[0].param_groups[0]["lr"]


def scheduler(rewind, structure=None, begin=FIRST):
    return PruningScheduler(
        schedule=Steps(values=(0.25, 0.5)),
        structure=structure,
        window=Window(begin=begin, end=begin + 2 * (SECOND - FIRST), every=SECOND - FIRST, unit="step"),
        rewind=rewind,
    )


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, **{"max_epochs": 5} | settings)
    trainer.fit(module, DataLoader(torch.arange(BATCHES)), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("step", [0, K])
def test_weights_that_are_left_are_those_of_the_early_step_and_the_others_zero(step):
    after = Starts()
    fit(Net(), scheduler(Rewind(step=step)), after)
    early, moments = after.states[step]
    for prune, sparsity in ((FIRST, 0.25), (SECOND, 0.5)):
        now, states = after.states[prune]
        weight = now["net.0.weight"]
        keep = weight != 0
        assert int((~keep).sum()) == round(sparsity * weight.numel())
        assert torch.equal(weight, early["net.0.weight"] * keep)
        assert torch.equal(now["net.1.running_mean"], early["net.1.running_mean"])
        if step:
            assert torch.equal(states[0]["exp_avg"], moments[0]["exp_avg"] * keep)
            assert int(states[0]["step"]) == step
        else:
            assert not states


def test_what_is_pruned_is_the_trained_weight_and_not_the_early_one():
    before, after = Starts(), Starts()
    fit(Net(), before, scheduler(Rewind(step=K)), after)
    trained = before.states[FIRST][0]["net.0.weight"]
    smallest = trained.abs().flatten().argsort()[: round(0.25 * trained.numel())]
    assert after.states[FIRST][0]["net.0.weight"].flatten()[smallest].eq(0).all()


def test_training_after_a_rewind_is_training_from_then_under_the_mask():
    after = Starts()
    fit(Net(), scheduler(Rewind(step=K)), after)
    assert after.rates[FIRST] == after.rates[K]
    assert after.rates[FIRST + 1] == after.rates[K + 1]
    assert after.rates[FIRST - 1] != after.rates[FIRST]


def test_a_learning_rate_goes_back_alone():
    before, after, plain = Starts(), Starts(), Starts()
    fit(Net(), before, scheduler(Rewind(restores="learning_rate", step=K)), after)
    fit(Net(), scheduler(None), plain)
    assert [after.rates[FIRST + step] for step in range(4)] == [after.rates[K + step] for step in range(4)]
    assert plain.rates[FIRST] < after.rates[FIRST]
    trained, now = before.states[FIRST][0]["net.0.weight"], after.states[FIRST][0]["net.0.weight"]
    assert torch.equal(now, trained * (now != 0))


def test_channels_that_are_left_go_back_in_their_new_shape():
    after = Starts()
    module = Net()
    fit(module, scheduler(Rewind(step=K), Channel()), after)
    assert module.net[0].out_channels == 4
    early, now = after.states[K][0]["net.0.weight"], after.states[SECOND][0]["net.0.weight"]
    assert len(now) == 4
    assert all(any(torch.equal(channel, known) for known in early) for channel in now)
    assert after.states[SECOND][1][0]["exp_avg"].shape == now.shape


@pytest.mark.parametrize("structure", [None, Channel()], ids=["weight", "channel"])
@pytest.mark.parametrize("rewind", [Rewind(step=K), Rewind(restores="learning_rate", step=K)], ids=["weights", "rate"])
def test_a_resumed_fit_is_bit_equal(rewind, structure, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Net()
    trainer = fit(whole, scheduler(rewind, structure), saver, enable_checkpointing=True)
    expected = [dict(whole.state_dict()), trainer.optimizers[0].state_dict()]
    for step in (1, K, 5, FIRST, 10, SECOND, 15):
        path = tmp_path / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        resumed = Net()
        trainer = fit(resumed, scheduler(rewind, structure), ckpt_path=path)
        assert same(expected, [dict(resumed.state_dict()), trainer.optimizers[0].state_dict()]), step


def test_a_step_after_the_first_pruning_step_is_refused_before_anything_changes():
    module = Net()
    before = copy.deepcopy(dict(module.state_dict()))
    with pytest.raises(ValueError, match="pruning begins before it"):
        fit(module, scheduler(Rewind(step=FIRST + 1)))
    assert same(before, dict(module.state_dict()))


def test_the_first_pruning_step_itself_may_be_gone_back_to():
    after = Starts()
    fit(Net(), scheduler(Rewind(step=FIRST)), after)
    now, early = after.states[SECOND][0]["net.0.weight"], after.states[FIRST][0]["net.0.weight"]
    assert int((now != 0).sum()) == 36
    assert torch.isin(now[now != 0], early).all()


def test_a_step_whose_batch_is_missing_from_the_data_is_remembered_at_the_next():
    class Gaps(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

        def train_dataloader(self):
            return DataLoader(range(BATCHES), collate_fn=lambda batch: None if batch == [K] else batch)

    after = Starts()
    quiet(scheduler(Rewind(step=K)), after, max_epochs=5).fit(Gaps())
    # One optimizer step an epoch is missing: the first pruning step comes after as many batches, but fewer steps.
    early, now = after.states[K][0]["net.0.weight"], after.states[FIRST - 2][0]["net.0.weight"]
    assert int((now == 0).sum()) == 18
    assert torch.equal(now, early * (now != 0))


def test_a_fit_that_goes_on_past_the_step_is_refused(tmp_path):
    trainer = fit(Net())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="rewind goes back to step 2, but this fit goes on from step 20"):
        fit(Net(), scheduler(Rewind(step=K), begin=21), ckpt_path=tmp_path / "plain.ckpt", max_epochs=10)


def test_without_a_learning_rate_schedule_there_is_nothing_to_rewind():
    module = Net()
    module.has_schedule = False
    with pytest.raises(ValueError, match="no learning-rate schedule"):
        fit(module, scheduler(Rewind(restores="learning_rate", step=K)))
