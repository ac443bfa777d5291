"""Lightning's own averages of weights beside our callbacks: equal to averages by hand of what was trained."""

import itertools

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher, PenaltyRegularizer, PruningScheduler, SharpnessAware, Window
from lightning_optim.regularization import L1, L2
from lightning_optim.schedule import Linear
from support import quiet, same

pytestmark = pytest.mark.filterwarnings("ignore")
EPOCHS, DECAY, FIRST = 4, 0.75, 2


class Net(nn.Module):
    calls = 0

    def __init__(self, width, seed, norm=nn.BatchNorm1d):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem, self.norm, self.head = nn.Linear(6, width), norm(width), nn.Linear(width, 3)

    def forward(self, x):
        type(self).calls += 1  # an attribute of its own would be put back after a second pass
        return self.head(F.relu(self.norm(self.stem(x))))


class Module(LightningModule):
    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.net = Net(8, seed=0, norm=norm)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Spy(Callback):
    """Averages by hand: of each step (EMA and mean), and of what the last epochs begin with; masks hold in them too."""

    def __init__(self):
        self.weights, self.moving, self.mean, self.of_epochs, self.calls = [], [], [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.calls.append(pl_module.net.calls)
        if FIRST <= trainer.current_epoch < EPOCHS:
            self.of_epochs = self.averaged(self.of_epochs, pl_module, 1.0 / (trainer.current_epoch - FIRST + 1))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        masks = [weight.detach() != 0 for weight in pl_module.parameters()]
        for averages in (self.moving, self.mean, self.of_epochs):
            for average, mask in zip(averages, masks, strict=False):
                average.mul_(mask)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append([weight.detach().clone() for weight in pl_module.parameters()])
        self.moving = self.averaged(self.moving, pl_module, 1.0 - DECAY)
        self.mean = self.averaged(self.mean, pl_module, 1.0 / len(self.weights))

    def on_train_end(self, trainer, pl_module):
        self.calls.append(pl_module.net.calls)

    @staticmethod
    def averaged(averages, pl_module, share):
        now = [weight.detach() for weight in pl_module.parameters()]
        if not averages:
            return [weight.clone() for weight in now]
        return [old + (new - old) * share for old, new in zip(averages, now, strict=True)]


def pruning():
    return PruningScheduler(schedule=Linear(start=0.2, end=0.5), window=Window(end=0.7, every=0.1))


def penalizing():
    penalties, strength = {"l1": L1(), "decay": L2()}, {"l1": 0.01, "decay": 0.1}
    return PenaltyRegularizer(penalties=penalties, strength=strength, decoupled=("decay",))


OURS = {
    "masks": pruning,
    "penalties": penalizing,
    "sharpness": SharpnessAware,
    "teacher": lambda: DistillationTeacher(teacher=Net(12, seed=1)),
}
AVERAGES = {
    "moving": lambda: EMAWeightAveraging(decay=DECAY),
    "mean": WeightAveraging,
    "of_epochs": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=FIRST + 1, annealing_epochs=1),
}


def fit(*callbacks, norm=nn.BatchNorm1d):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 6, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    module, spy = Module(norm), Spy()
    quiet(*callbacks, spy, max_epochs=EPOCHS).fit(module, DataLoader(TensorDataset(x, y), 6))
    return [weight.detach() for weight in module.parameters()], spy


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("order", [1, -1])
def test_averages_are_those_by_hand(ours, kind, order):
    norm = nn.LayerNorm if kind == "of_epochs" else nn.BatchNorm1d  # else Lightning trains for one step more
    found, spy = fit(*[OURS[ours](), AVERAGES[kind]()][::order], norm=norm)
    for value, expected in zip(found, getattr(spy, kind), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    zeros = sum(int((value == 0).sum()) for value in found)
    assert zeros == (36 if ours == "masks" else 0)
    if kind != "of_epochs":  # which sets the learning rate too
        _, alone = fit(OURS[ours](), norm=norm)
        assert same(spy.weights, alone.weights)


def test_passes_for_batch_norm_statistics_alone_are_not_taken_twice():
    _, spy = fit(SharpnessAware(), AVERAGES["of_epochs"]())
    assert [after - before for before, after in itertools.pairwise(spy.calls)] == [8, 8, 8, 8, 4]
