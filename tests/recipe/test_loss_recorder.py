"""What is recorded of a step, however it is taken and whatever callbacks add to it."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import BatchMixer, DistillationTeacher, PenaltyRegularizer, SharpnessAware, Window
from lightning_optim.distillation import MeanSquaredError, Peer
from lightning_optim.recipe.loss_recorder import LossRecorder
from lightning_optim.regularization import L2, SAM, Mixup
from support import quiet

STEPS = 6


class Module(LightningModule):
    """Keeps its own loss of each run of its step."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.seen = []

    def own_loss(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.seen.append(loss.item())
        return loss

    def training_step(self, batch, batch_idx):
        return self.own_loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class ReturnsDict(Module):
    def training_step(self, batch, batch_idx):
        return {"loss": self.own_loss(batch)}


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(self.own_loss(batch))
        self.optimizers().step()


class SkipsOne(Module):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 2 else self.own_loss(batch)


class Given(Callback):
    """What Lightning trains with, and what has been logged."""

    def __init__(self):
        self.losses, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]) if outputs else None)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(module, *callbacks, **settings):
    """Fit with the recorder before all others; its curves."""
    generator = torch.Generator().manual_seed(1)
    samples = TensorDataset(torch.randn(8 * STEPS, 3, generator=generator), torch.arange(8 * STEPS) % 2)
    recorder = LossRecorder()
    quiet(recorder, *callbacks, max_epochs=1, **settings).fit(module, DataLoader(samples, batch_size=8))
    assert not {"training_step", "manual_backward"} & set(vars(module))
    assert list(recorder.curves.batches) == list(range(1, STEPS + 1))
    return recorder.curves.values


def teacher(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DistillationTeacher(teacher=nn.Linear(3, 2), losses={"answers": MeanSquaredError()}, **settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Module, ReturnsDict, Manual])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}], ids=["", "accumulated"])
def test_task_terms_and_total_are_those_of_each_step(kind, settings):
    if kind is Manual and settings:
        pytest.skip("Lightning accumulates nothing under manual optimization")
    module, given = kind(), Given()
    penalty = PenaltyRegularizer(penalties=L2(), strength=0.1)
    values = fit(module, teacher(weight=2.0, hard_weight=0.3), penalty, given, **settings)
    assert values["task"] == pytest.approx(module.seen)
    for name in ("distillation/answers", "regularization/l2"):
        assert values[name] == pytest.approx([logged[name] for logged in given.logged])
    terms = zip(module.seen, values["distillation/answers"], values["regularization/l2"], strict=True)
    assert values["total"] == pytest.approx([0.3 * task + 2.0 * far + 0.1 * l2 for task, far, l2 in terms])


@pytest.mark.filterwarnings("ignore")
def test_without_callbacks_the_total_is_the_task():
    module = Module()
    values = fit(module)
    assert values["total"] == values["task"] == pytest.approx(module.seen)


@pytest.mark.filterwarnings("ignore")
def test_a_term_that_begins_late_and_a_step_without_loss_leave_gaps():
    values = fit(SkipsOne(), teacher(window=Window(begin=0.5)))
    assert [value is None for value in values["task"]] == [False, False, True, False, False, False]
    assert [value is None for value in values["distillation/answers"]] == [True, True, True, False, False, False]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Module, Manual])
def test_of_a_step_in_two_passes_the_first_is_recorded(kind):
    module = kind()
    values = fit(module, teacher(weight=2.0, hard_weight=0.3), SharpnessAware(sharpness=SAM(rho=0.5)))
    assert values["task"] == pytest.approx(module.seen)  # an attribute, which the second pass leaves alone
    pairs = zip(module.seen, values["distillation/answers"], strict=True)
    assert values["total"] == pytest.approx([0.3 * task + 2.0 * far for task, far in pairs])


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_a_mixed_batch_is_the_mixed_one():
    given = Given()
    values = fit(Module(), BatchMixer(mixing=Mixup()), given)
    assert values["task"] == values["total"] == pytest.approx(given.losses)


@pytest.mark.filterwarnings("ignore")
def test_a_peers_own_loss_is_a_curve_beside_the_students():
    module = Module()
    values = fit(module, DistillationTeacher(teacher=Peer(module=nn.Linear(3, 2))))
    assert values["task"] == pytest.approx(module.seen)
    assert values["distillation/peer"] != values["task"]
    assert set(values) == {"task", "distillation/peer", "distillation/soft_target", "total"}
