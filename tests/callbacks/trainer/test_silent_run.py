"""A silent run leaves logs, metrics and collections of them as they are."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import CatMetric, MeanMetric, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_optim.callbacks.trainer.silent_run import SilentRun
from support import same


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.seen, self.all, self.error = MeanMetric(), CatMetric(), MeanSquaredError()
        # two of them share their states, so that one alone is updated
        self.both = MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)])
        self.holder = nn.ModuleDict({"inner": MeanMetric()})
        self.logged, self.printed, self.steps, self.last = [], [], 0, "none"

    def log(self, name, value, **_):
        self.logged.append(name)

    def print(self, *words):
        self.printed.append(words)


def step(module, shift):
    """What a user's step does with metrics, and a value that depends on them."""
    logits, y = torch.eye(3) + shift, torch.tensor([0, 1, 2])
    module.log("mean", module.seen(logits))
    module.log_dict({"first": logits.sum()})
    module.all.update(logits)
    module.both.update(logits.roll(int(shift), 0), y)
    module.holder["inner"].update(shift)
    module.print("here")
    module.steps, module.last = module.steps + 1, f"shift {shift:g}"
    module.logged.append(("kept", shift))
    return module.error(logits, torch.eye(3)), module.both.compute()


def state(module):
    """What each metric has counted, copied."""
    metrics = {name: part for name, part in module.named_modules() if isinstance(part, Metric)}
    return copy.deepcopy({name: [part.update_count, part.metric_state] for name, part in metrics.items()})


def test_what_a_module_has_counted_and_logged_stays():
    module, silence = Module(), SilentRun()
    step(module, 1.0)
    before, logged = state(module), list(module.logged)
    for _ in range(2):  # each silent run begins with empty copies
        with silence.of(module):
            error, both = step(module, 2.0)
        assert float(error) == 4.0
        assert float(both["MulticlassAccuracy"]) == 0.0
    assert same(state(module), before)
    assert module.logged == logged
    assert len(module.printed) == 1
    assert (module.steps, module.last) == (1, "shift 1")


def test_a_metric_goes_on_counting_after_a_silent_run():
    module, plain, silence = Module(), Module(), SilentRun()
    for shift in (1.0, 2.0, 3.0):
        step(plain, shift)
        step(module, shift)
        with silence.of(module):
            step(module, 10.0)
    for name in ("seen", "error"):
        assert float(getattr(module, name).compute()) == float(getattr(plain, name).compute())
    assert torch.equal(module.all.compute(), plain.all.compute())
    assert same(module.both.compute(), plain.both.compute())


def test_a_metric_in_the_loss_keeps_its_gradient_and_patches_go():
    module, silence = Module(), SilentRun()
    x = torch.zeros(3, requires_grad=True)
    with silence.of(module):
        module.error(x, torch.ones(3)).backward()
    assert x.grad.tolist() == pytest.approx([-2 / 3] * 3)
    assert "log" not in vars(module)
    assert "forward" not in vars(module.error)
