import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import Window
from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.trainer.added_loss import AddedLoss
from lightning_optim.errors import TapError
from support import quiet, same

pytestmark = pytest.mark.filterwarnings("ignore")


class L1Penalty(TechniqueCallback):
    """All that a new penalty takes."""

    def __init__(self, *, weight, name=None, **when):
        super().__init__(name=name)
        self.weight, self.added = weight, AddedLoss(self.add, **when)

    def prepare(self, trainer, pl_module, stage):
        if stage == "fit":
            self.added.attach(trainer, pl_module)

    def release(self):
        self.added.detach()

    def add(self, loss, step):
        return loss + self.weight * norm(step.pl_module)


def norm(module):
    return sum(parameter.abs().sum() for parameter in module.net.parameters())


class Net(LightningModule):
    penalty = 0.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.net(x)

    def weight_now(self):
        return self.penalty

    def own_loss(self, batch):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        return loss + self.weight_now() * norm(self) if self.penalty else loss

    def training_step(self, batch, batch_idx):
        return self.own_loss(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class ReturnsDict(Net):
    def training_step(self, batch, batch_idx):
        return {"loss": self.own_loss(batch), "seen": len(batch)}


class SkipsSome(Net):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else self.own_loss(batch)


class Manual(Net):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.own_loss(batch))
        optimizer.step()


class TwoBackwards(Net):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self(batch[0]).pow(2).mean())
        self.manual_backward(self.own_loss(batch))
        optimizer.step()


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 6, generator=generator), torch.randint(0, 5, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(module, *callbacks, **settings):
    quiet(*callbacks, **{"max_epochs": 2} | settings).fit(module, data())
    return module


def by_hand(kind, weight=0.01):
    return type("ByHand", (kind,), {"penalty": weight})()


def patched(module):
    return {"training_step", "manual_backward", "on_train_epoch_end", "log"} & set(vars(module))


@pytest.mark.parametrize("kind", [Net, ReturnsDict, SkipsSome, Manual])
def test_a_penalty_of_ten_lines_equals_one_written_into_the_step(kind):
    added, reference = fit(kind(), L1Penalty(weight=0.01)), fit(by_hand(kind))
    assert same(added.state_dict(), reference.state_dict())
    assert not same(added.state_dict(), fit(kind()).state_dict())
    assert not patched(added)


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_it_does_so_under_the_trainers_settings(settings):
    added, reference = fit(Net(), L1Penalty(weight=0.01), **settings), fit(by_hand(Net), **settings)
    assert same(added.state_dict(), reference.state_dict())


def test_a_second_backward_may_be_chosen():
    added = fit(TwoBackwards(), L1Penalty(weight=0.01, backward_index=1))
    assert same(added.state_dict(), fit(by_hand(TwoBackwards)).state_dict())
    with pytest.raises(ValueError, match=r"backward_index=2 needs 3 calls of manual_backward .* there were 2"):
        fit(TwoBackwards(), L1Penalty(weight=0.01, backward_index=2))


def test_a_step_before_the_window_is_left_as_it_is():
    class Late(Net):
        penalty = 0.01

        def weight_now(self):
            return self.penalty if self.trainer.global_step >= 3 else 0.0

    added = fit(Net(), L1Penalty(weight=0.01, window=Window(begin=3, unit="step")))
    assert same(added.state_dict(), fit(Late()).state_dict())


def test_the_window_hands_on_how_far_it_is_and_the_batch_what_was_received():
    seen = []

    def add(loss, step):
        seen.append((step.progress, len(step.batch[0])))
        return loss

    callback = L1Penalty(weight=0.0)
    callback.added = AddedLoss(add, window=Window(begin=2, end=6, unit="step"))
    fit(Net(), callback)
    assert seen == [(0.0, 8), (0.25, 8), (0.5, 8), (0.75, 8), (1.0, 8), (1.0, 8)]


def test_a_window_that_never_opens_is_refused_by_check():
    class Checked(L1Penalty):
        def on_fit_start(self, trainer, pl_module):
            self.added.check(trainer)

    with pytest.raises(ValueError, match="window opens at epoch 5"):
        fit(Net(), Checked(weight=0.01, window=Window(begin=5, unit="epoch")))


def test_several_terms_add_up_in_the_order_of_callbacks():
    added = fit(Net(), L1Penalty(weight=0.25, name="a"), L1Penalty(weight=0.5, name="b"))

    class Both(Net):
        def own_loss(self, batch):
            return super().own_loss(batch) + 0.25 * norm(self) + 0.5 * norm(self)

    assert same(added.state_dict(), fit(Both()).state_dict())
    assert not patched(added)


@pytest.mark.parametrize("kind", [Net, Manual])
def test_a_term_receives_what_the_callback_before_it_has_made(kind):
    doubles, adds = L1Penalty(weight=0.0, name="doubles"), L1Penalty(weight=0.5, name="adds")
    doubles.added = AddedLoss(lambda loss, step: 2.0 * loss)

    class Both(kind):
        def own_loss(self, batch):
            return 2.0 * super().own_loss(batch) + 0.5 * norm(self)

    assert same(fit(kind(), doubles, adds).state_dict(), fit(Both()).state_dict())


class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            raise RuntimeError("stopped here")


@pytest.mark.parametrize("kind", [Net, Manual])
def test_an_exception_leaves_no_patch(kind):
    module = kind()
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(module, L1Penalty(weight=0.01), Stop())
    assert not patched(module)


def test_begin_and_end_stand_around_the_step_and_after_a_backward_that_is_not_the_one():
    seen = []

    def add(loss, step):
        seen.append("add")
        return loss

    callback = L1Penalty(weight=0.0)
    settings = {"begin": lambda step: seen.append("begin"), "end": lambda: seen.append("end"), "backward_index": 1}
    callback.added = AddedLoss(add, **settings)
    fit(TwoBackwards(), callback, max_steps=1)
    assert seen == ["begin", "begin", "add", "end"]


def test_a_step_that_fails_is_ended():
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("stopped here")

    seen = []
    callback = L1Penalty(weight=0.0)
    callback.added = AddedLoss(lambda loss, step: loss, end=lambda: seen.append("end"))
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(Fails(), callback)
    assert seen == ["end"]


def test_an_epoch_that_avoids_manual_backward_is_refused():
    class Forgets(Manual):
        def training_step(self, batch, batch_idx):
            self.own_loss(batch).backward()
            self.optimizers().step()

    module = Forgets()
    with pytest.raises(TapError, match=r"in place of loss.backward\(\)"):
        fit(module, L1Penalty(weight=0.01))
    assert not patched(module)


def test_copies_and_pickles_work_on_their_own():
    penalty = L1Penalty(weight=0.01)
    expected = fit(Net(), penalty).state_dict()
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):  # noqa: S301  # our own
        other.weight = 0.02
        assert same(fit(Net(), other).state_dict(), fit(by_hand(Net, 0.02)).state_dict())
    assert same(fit(Net(), penalty).state_dict(), expected)


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="window must be a Window, got dict"):
        L1Penalty(weight=0.01, window={"begin": 0})
    with pytest.raises(ValueError, match="backward_index must be at least 0"):
        L1Penalty(weight=0.01, backward_index=-1)
