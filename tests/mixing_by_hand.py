"""A module that counts and logs what it sees, the same with mixup in its own step, and fits of them."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_optim import BatchMixer
from lightning_optim.regularization import Mixup
from lightning_optim.regularization.draws import random_for
from support import quiet, same


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return self.head(F.relu(self.norm(self.stem(x))).mean((2, 3)))


class Module(LightningModule):
    """The user's: it counts and logs what it sees, and draws random numbers before and after the network."""

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.accuracy, self.seen = MulticlassAccuracy(4), MeanMetric()
        self.both = MetricCollection([MulticlassAccuracy(4), MulticlassF1Score(4)], prefix="both/")
        self.logged, self.noted = [], 0

    def read(self, batch):
        return batch

    def loss(self, logits, y):
        return F.cross_entropy(F.dropout(logits, 0.1), y)

    def note(self, logits, y):
        self.noted += 1
        self.log("accuracy", self.accuracy(logits, y), on_epoch=True, on_step=False)
        self.seen.update(y.float())
        self.both.update(logits, y)
        self.log_dict({"seen": self.seen, "mean": logits.mean()})

    def log(self, name, value, *args, **kwargs):
        self.logged.append((name, float(value.compute() if isinstance(value, MeanMetric) else value)))

    def training_step(self, batch, batch_idx):
        x, y = self.read(batch)
        logits = self.net(x + 0.01 * torch.randn_like(x))
        self.note(logits, y)
        return self.loss(logits, y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def drawn(number, rank, size, alpha, seed=0):
    random = random_for("mixing", seed, number, rank)
    order = random.sample(range(size), size)
    random.choice([0])
    return order, random.betavariate(alpha, alpha), random


class Written(Module):
    """Mixup in the step itself: one forward pass, two losses; what is counted and logged goes by the own labels."""

    alpha = 0.4

    def training_step(self, batch, batch_idx):
        x, y = self.read(batch)
        order, w, _ = drawn(self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank, len(x), self.alpha)
        x = w * x + (1 - w) * x[order]
        logits = self.net(x + 0.01 * torch.randn_like(x))
        self.note(logits, y)
        before = torch.get_rng_state()
        own = self.loss(logits, y)
        torch.set_rng_state(before)
        return w * own + (1 - w) * self.loss(logits, y[order])


def tensors():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 1, 6, 6, generator=generator), torch.randint(0, 4, (24,), generator=generator)


def data(collate=None):
    return DataLoader(TensorDataset(*tensors()), batch_size=4, collate_fn=collate)


def fit(module, *callbacks, max_epochs=2, ckpt_path=None, loader=None, **settings):
    torch.manual_seed(5)
    trainer = quiet(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, loader or data(), ckpt_path=ckpt_path)
    return module


def mixer(mixing=None, **settings):
    return BatchMixer(mixing=mixing or Mixup(alpha=0.4), **settings)


def ended_alike(left, right):
    """Weights, statistics, metrics and logs."""
    assert same(dict(left.state_dict()), dict(right.state_dict()))
    assert left.net.runs == right.net.runs
    assert (left.logged, left.noted) == (right.logged, right.noted)
    for name in ("accuracy", "seen"):
        one, other = getattr(left, name), getattr(right, name)
        assert same([one.update_count, one.metric_state], [other.update_count, other.metric_state])
    assert same(left.both.compute(), right.both.compute())


class Soft(Written):
    """The same with labels as probabilities."""

    smoothing = 0.0

    def note(self, logits, y): ...

    def training_step(self, batch, batch_idx):
        x, y = self.read(batch)
        order, w, _ = drawn(self.trainer.fit_loop.epoch_loop.total_batch_idx, 0, len(x), self.alpha)
        y = (1 - self.smoothing) * F.one_hot(y, 4).float() + self.smoothing / 4
        x, y = w * x + (1 - w) * x[order], w * y + (1 - w) * y[order]
        return self.loss(self.net(x + 0.01 * torch.randn_like(x)), y)


class TakesSoft(Module):
    def note(self, logits, y): ...


class ManualSoft(TakesSoft):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


class Segments(LightningModule):
    """A mask and a class, in one loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def both(self, logits, mask, kind):
        return F.cross_entropy(logits, mask, ignore_index=-1) + F.cross_entropy(logits.mean((2, 3)), kind)

    def training_step(self, batch, batch_idx):
        return self.both(self.net(batch["x"]), batch["mask"], batch["kind"])

    configure_optimizers = Module.configure_optimizers


class WrittenSegments(Segments):
    def training_step(self, batch, batch_idx):
        order, w, _ = drawn(self.trainer.fit_loop.epoch_loop.total_batch_idx, 0, 4, 0.4)
        logits = self.net(w * batch["x"] + (1 - w) * batch["x"][order])
        own = self.both(logits, batch["mask"], batch["kind"])
        return w * own + (1 - w) * self.both(logits, batch["mask"][order], batch["kind"][order])


def segments(samples):
    x, y = map(torch.stack, zip(*samples, strict=True))
    mask = (x[:, 0] > 0.5).long() + (x[:, 0] > 0).long()
    mask[:, 0] = -1  # a border that is left out
    return {"x": x, "mask": mask, "kind": y % 3}
