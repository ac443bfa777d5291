import io
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.trainer.added_loss import AddedLoss
from lightning_optim.callbacks.trainer.own_parameters import OwnParameters
from support import quiet, same


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TwoOwn(TechniqueCallback):
    """Adds ``a ** 2 + 3 b`` to the loss, and trains both."""

    def __init__(self):
        super().__init__(name=None)
        self.a, self.b = torch.tensor(1.0, requires_grad=True), torch.tensor([2.0], requires_grad=True)
        self.own = OwnParameters([self.a, self.b], lambda tensors: torch.optim.SGD(tensors, 0.25))
        self.added = AddedLoss(lambda loss, step: loss + self.a**2 + 3.0 * self.b.sum())

    def prepare(self, trainer, pl_module, stage):
        self.added.attach(trainer, pl_module)

    def release(self):
        self.added.detach()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.own.note_step(trainer)

    def on_train_batch_end(self, trainer, *_):
        self.own.end_batch(trainer)


def fit(callback, batches, **settings):
    module = Net()
    quiet(callback, max_epochs=1, **settings).fit(module, torch.ones(batches, 1, 2))
    return module


def test_two_parameters_by_hand():
    callback = TwoOwn()
    fit(callback, 2)
    assert callback.a.item() == 0.25  # 1 -> 1 - 0.25 * 2 -> 0.5 - 0.25 * 1
    assert callback.b.tolist() == [0.5]  # 2 - 2 * 0.25 * 3


def test_gradients_of_accumulated_batches_count_once():
    callback = TwoOwn()
    fit(callback, 2, accumulate_grad_batches=2)
    assert callback.a.item() == 0.5
    assert callback.b.tolist() == [1.25]


class OwnOptimizer(Net):
    """Steps an optimizer that the trainer does not know."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        self.own = torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.own.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.own.step()


def test_where_the_trainer_has_no_optimizer_each_batch_is_a_step():
    callback = TwoOwn()
    quiet(callback, max_epochs=1).fit(OwnOptimizer(), torch.ones(2, 1, 2))
    assert callback.a.item() == 0.25  # as above
    assert callback.b.tolist() == [0.5]


def test_they_stay_out_of_the_module():
    assert set(fit(TwoOwn(), 1).state_dict()) == set(Net().state_dict())


def scaled(scale):
    scaler = SimpleNamespace(get_scale=lambda: scale)
    return SimpleNamespace(
        lightning_module=Net(),
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(reduce=lambda gradient, reduce_op: gradient),
    )


def step(own, loss, trainer):
    loss.backward()
    own.note_step(trainer)
    own.end_batch(trainer)


def test_the_loss_scale_is_divided_out_and_an_infinite_gradient_skips_the_step():
    x, y = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    own = OwnParameters([x, y], lambda tensors: torch.optim.SGD(tensors, 0.5))
    step(own, 1024.0 * x, scaled(1024.0))
    assert (x.item(), y.item()) == (0.5, 1.0)
    step(own, torch.inf * x + y, scaled(1024.0))
    assert (x.item(), y.item()) == (0.5, 1.0)
    assert x.grad is None
    assert y.grad is None


def test_a_batch_without_a_step_of_the_user_takes_none():
    x = torch.tensor(1.0, requires_grad=True)
    own = OwnParameters([x], lambda tensors: torch.optim.SGD(tensors, 0.5))
    (2.0 * x).backward()
    own.end_batch(scaled(1.0))
    assert x.item() == 1.0
    assert x.grad.item() == 2.0


def adam(start=0.0):
    tensors = [torch.full((2,), start, requires_grad=True), torch.full((), start, requires_grad=True)]
    return OwnParameters(tensors, lambda tensors: torch.optim.Adam(tensors, 0.1))


def loss(own):
    return (own.tensors[0] - torch.tensor([1.0, 2.0])).pow(2).sum() + (own.tensors[1] - 3.0).pow(2)


def test_a_restored_state_goes_on_bit_equal_with_its_gradients():
    whole, restored = adam(), adam(start=5.0)
    step(whole, loss(whole), scaled(1.0))
    loss(whole).backward()  # accumulated when the checkpoint is written
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert same(whole.state_dict(), restored.state_dict())
    for own in (whole, restored):
        step(own, loss(own), scaled(1.0))
        step(own, loss(own), scaled(1.0))
    assert same(whole.state_dict(), restored.state_dict())


def test_a_move_keeps_the_objects_and_the_state():
    own = adam()
    step(own, loss(own), scaled(1.0))
    before, tensors = own.state_dict(), list(own.tensors)
    own.move(torch.device("cpu"))
    assert all(one is other for one, other in zip(own.tensors, tensors, strict=True))
    assert same(own.state_dict(), before)


def test_a_state_of_other_tensors_is_refused_before_anything_changes():
    own, other = adam(), OwnParameters([torch.zeros(3, requires_grad=True)], torch.optim.Adam)
    before = own.state_dict()
    with pytest.raises(ValueError, match=r"holds tensors of shape \[\[3\]\]"):
        own.load_state_dict(other.state_dict())
    assert same(own.state_dict(), before)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        OwnParameters([], torch.optim.Adam)
    with pytest.raises(ValueError, match="needs a gradient"):
        OwnParameters([torch.zeros(2)], torch.optim.Adam)
