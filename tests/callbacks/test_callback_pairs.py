"""Two callbacks in one fit: weights equal to those of a step that has the penalty written into it."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import (
    BatchMixer,
    DistillationTeacher,
    DropoutScheduler,
    NASSupernet,
    PenaltyRegularizer,
    PruningScheduler,
    QATFakeQuant,
    SharpnessAware,
    Targets,
    Window,
)
from lightning_optim.nas import ElasticWidth
from lightning_optim.pruning import Channel
from lightning_optim.regularization import (
    L1,
    L2,
    Dropout,
    GroupLasso,
    Jacobian,
    Mixup,
    Slimming,
    StochasticDepth,
)
from lightning_optim.regularization.draws import generator_for, random_for, seed_for
from lightning_optim.schedule import Linear
from support import quiet, same

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.top, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.top(x)).mean((2, 3)))


class Module(LightningModule):
    strengths = (0.0, 0.0)

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.example_input_array = torch.zeros(2, 1, 6, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.0)


class Written(Module):
    """L1 of the matrices in the loss; L2 of them after the step."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.01 * sum(each.abs().sum() for each in self.matrices())

    def matrices(self):
        return [self.net.stem.weight, self.net.top.weight, self.net.head.weight]

    def on_train_start(self):
        def decay(optimizer, *_):
            for weight in self.matrices():
                weight.detach().mul_(1.0 - optimizer.param_groups[0]["lr"] * 0.5)

        self.handle = self.trainer.optimizers[0].register_step_post_hook(decay)


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 1, 6, 6, generator=generator), torch.randint(0, 4, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def fit(module, *callbacks):
    quiet(*callbacks, max_epochs=1).fit(module, data())
    return dict(module.state_dict())


def penalties():
    return PenaltyRegularizer(
        penalties={"l1": L1(), "decay": L2()}, strength={"l1": 0.01, "decay": 0.5}, decoupled=("decay",)
    )


def teaching():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    nn.init.constant_(teacher[1].weight, 0.1)
    return DistillationTeacher(teacher=teacher, hard_weight=1.0)


def pruning(**settings):
    window = Window(begin=0.25, end=0.75)
    return PruningScheduler(**{"schedule": Linear(start=0.0, end=0.5), "window": window} | settings)


def cutting():
    return pruning(structure=Channel(shrink="update"))


def searching():
    space = {"width": ElasticWidth(targets=Targets(include=("net.stem", "net.top")))}
    return NASSupernet(space=space, search_at="call")


OTHERS = {
    "teacher": teaching,
    "masks": pruning,
    "quantization": QATFakeQuant,
    "supernet": searching,
    "sharpness": SharpnessAware,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("order", [1, -1])
def test_beside_penalties_each_callback_does_what_it_does_to_a_step_that_has_them(other, order):
    found = fit(Module(), *[OTHERS[other](), penalties()][::order])
    assert same(found, fit(Written(), OTHERS[other]()))
    assert not same(found, fit(Module(), OTHERS[other]()))


class WrittenJacobian(Module):
    """The Jacobian's norm by the projections that the callback draws."""

    def training_step(self, batch, batch_idx):
        x = batch[0].clone().requires_grad_()
        logits = self(x)
        vectors = torch.randn(logits.shape, generator=generator_for(0, batch_idx, 0))
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        (gradient,) = torch.autograd.grad(logits, x, unit, create_graph=True)
        return F.cross_entropy(logits, batch[1]) + 0.1 * (0.5 * 4 * (gradient**2).sum() / len(x))


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("order", [1, -1])
def test_beside_a_jacobian_penalty_so_too(other, order):
    jacobian = PenaltyRegularizer(penalties=Jacobian(), strength=0.1)
    assert same(fit(Module(), *[OTHERS[other](), jacobian][::order]), fit(WrittenJacobian(), OTHERS[other]()))


class Mixed(Module):
    """Mixup in the step: one forward pass, two losses."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        random = random_for("mixing", 0, batch_idx, 0)
        order = random.sample(range(len(x)), len(x))
        random.choice([0])
        w = random.betavariate(0.4, 0.4)
        return self.mixed_loss(self(w * x + (1 - w) * x[order]), y, y[order], w)

    def mixed_loss(self, logits, own, others, w):
        return w * F.cross_entropy(logits, own) + (1 - w) * F.cross_entropy(logits, others)


class SoftlyMixed(Mixed):
    def mixed_loss(self, logits, own, others, w):
        own, others = F.one_hot(own, 4).float(), F.one_hot(others, 4).float()
        return F.cross_entropy(logits, w * own + (1 - w) * others)


def jacobian():
    return PenaltyRegularizer(penalties=Jacobian(), strength=0.1)


@pytest.mark.parametrize("other", [*OTHERS.values(), cutting, penalties, jacobian], ids=lambda make: make.__name__)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("labels", "written"), [("mix_loss", Mixed), ("soft", SoftlyMixed)])
def test_beside_a_mixer_each_callback_does_what_it_does_to_a_step_that_mixes(other, order, labels, written):
    mixer = BatchMixer(mixing=Mixup(alpha=0.4), labels=labels)
    found = fit(Module(), *[other(), mixer][::order])
    assert same(found, fit(written(), other()))
    assert not same(found, fit(Module(), other()))


class Dropped(Net):
    """Dropout after the second convolution, as a hand writes it."""

    key = "dropout"

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.drop(self.top(x))).mean((2, 3)))

    def drop(self, x):
        (owner,) = self.owner
        if not self.training or not owner.is_stepping:
            return x
        number = owner.trainer.fit_loop.epoch_loop.total_batch_idx
        generator = torch.Generator().manual_seed(seed_for("dropout", "", 0, number, 0, f"{self.key}/net.top", 0))
        shape = {"dropout": x.shape, "stochastic_depth": (len(x), 1, 1, 1)}[self.key]
        return x * (torch.empty(shape).bernoulli_(0.7, generator=generator) / 0.7)


def dropped(key, kind=Module):
    class ByHand(kind):
        is_stepping = False

        def __init__(self):
            super().__init__()
            self.net = type("DroppedNet", (Dropped,), {"key": key})()
            self.net.owner = [self]

        def training_step(self, batch, batch_idx):
            self.is_stepping = True
            try:
                return super().training_step(batch, batch_idx)
            finally:
                self.is_stepping = False

    return ByHand()


def mixing():
    return BatchMixer(mixing=Mixup(alpha=0.4))


METHODS = {"dropout": Dropout(), "stochastic_depth": StochasticDepth()}


@pytest.mark.parametrize(
    "other", [*OTHERS.values(), cutting, penalties, jacobian, mixing], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("key", METHODS)
def test_beside_dropout_each_callback_does_what_it_does_to_a_network_that_has_it(other, order, key):
    dropout = DropoutScheduler(dropout=METHODS[key], probability=0.3, targets=Targets(include=("net.top",)))
    found = fit(Module(), *[other(), dropout][::order])
    assert same(found, fit(dropped(key), other()))
    assert not same(found, fit(Module(), other()))


class FindsInBetween(LearningRateFinder):
    """Tries learning rates in the middle of a fit, and takes none."""

    def __init__(self):
        super().__init__(num_training_steps=3, early_stop_threshold=None, update_attr=False)

    def on_fit_start(self, trainer, pl_module): ...

    def on_train_epoch_start(self, trainer, pl_module):
        self.lr_find(trainer, pl_module)


@pytest.mark.parametrize("window", [None, Window(begin=4, unit="step")])
def test_a_fit_inside_the_fit_leaves_no_decay_behind(window, tmp_path):
    def make():
        return PenaltyRegularizer(penalties=L2(), strength=0.5, decoupled=("l2",), window=window)

    module = Module()
    quiet(FindsInBetween(), make(), max_epochs=1, default_root_dir=tmp_path).fit(module, data())
    assert same(dict(module.state_dict()), fit(Module(), make()))


def test_the_hard_weight_of_a_teacher_that_stands_behind_counts_for_penalties_too():
    class Doubled(Module):
        def training_step(self, batch, batch_idx):
            penalty = 0.02 * sum(each.abs().sum() for each in Written.matrices(self))
            return super().training_step(batch, batch_idx) + penalty

    def make():
        teacher = teaching()
        return DistillationTeacher(teacher=teacher.teacher, hard_weight=0.5)

    behind = fit(Module(), PenaltyRegularizer(penalties=L1(), strength=0.02), make())
    assert same(behind, fit(Doubled(), make()))


@pytest.mark.parametrize("order", [1, -1])
def test_masked_and_removed_channels_stay_away_under_penalties(order):
    masked, cut = Module(), Module()
    lasso = {"penalties": {"lasso": GroupLasso(), "slim": Slimming()}, "strength": 0.01}
    for module, shrink in ((masked, "never"), (cut, "end")):
        fit(module, *[pruning(structure=Channel(shrink=shrink)), PenaltyRegularizer(**lasso)][::order])
    assert (cut.net.stem.out_channels, cut.net.top.out_channels) == (3, 4)
    rows = masked.net.stem.weight.flatten(1).count_nonzero(1)
    assert int((rows == 0).sum()) == 3
    assert all(weight.isfinite().all() for module in (masked, cut) for weight in module.parameters())
