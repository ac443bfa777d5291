import threading
import weakref

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from lightning_optim.surgery.copies import copy_model, eval_copy, eval_view
from lightning_optim.surgery.patch import Patches


def test_a_trainer_is_not_copied():
    class Trainer:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    class OwnTrainer(Trainer): ...

    net, trainer = nn.Linear(2, 2), OwnTrainer()
    net.strong, net.weak = trainer, weakref.proxy(trainer)
    assert eval_copy(net).strong is eval_copy(net).weak is None
    net.lock = threading.Lock()
    assert eval_copy(net).strong is eval_copy(net).weak is None


def keep_a_metric(net, answer):
    net[0].metric = MeanMetric()
    net[0].metric(answer.sum())


def keep_metrics(net, answer):
    net[0].metrics = MetricCollection({"mean": MeanMetric()})
    net[0].metrics(answer.sum())


def keep_the_answer(net, answer):
    net.answer = answer


def keep_answers_deep_inside(net, answer):
    net.kept = {"last": [(answer, answer)]}


def old_weight_norm(net, answer):
    nn.utils.weight_norm(net[0])
    net(torch.ones(1, 2))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("copied", [copy_model, eval_copy, eval_view])
@pytest.mark.parametrize(
    "keep", [keep_a_metric, keep_metrics, keep_the_answer, keep_answers_deep_inside, old_weight_norm]
)
def test_what_was_computed_from_parameters_is_copied_as_a_plain_value(keep, copied):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2))
    keep(net, net(torch.ones(1, 2)))
    assert torch.equal(copied(net)(torch.ones(1, 2)), net(torch.ones(1, 2)))


def test_a_tensor_held_twice_is_one_tensor_in_the_copy():
    net = nn.Linear(2, 2)
    net.one = net.other = net(torch.ones(2))
    copied = copy_model(net)
    assert copied.one is copied.other
    assert torch.equal(copied.one, net.one)
    assert net.one.requires_grad
    assert not copied.one.requires_grad


def test_what_cannot_be_copied_is_shared_and_nothing_else():
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].lock, net[0].sizes, net.batches = threading.Lock(), [1], (number for number in range(3))
    net[0].register_forward_hook(lambda *_, lock=net[0].lock: None)
    net.register_forward_hook(HookWithLock())
    Patches().wrap(net, "forward", lambda original, x: original(x))  # reaches the lock through the network
    copied = copy_model(net)
    assert torch.equal(copied.forward(torch.ones(1, 2)), net(torch.ones(1, 2)))
    assert copied.forward.__self__ is copied
    assert copied[0].lock is net[0].lock
    assert copied.batches is net.batches
    assert copied[0].sizes is not net[0].sizes
    assert copied[0].weight is not net[0].weight
    assert copied._forward_hooks is not net._forward_hooks
    assert [*copied._forward_hooks.values()] == [*net._forward_hooks.values()]


class HookWithLock:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, *_): ...


def test_a_module_that_refuses_to_be_copied_says_so_itself():
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of me")

    with pytest.raises(TypeError, match="there is one of me"):
        copy_model(nn.Sequential(Stubborn()))
