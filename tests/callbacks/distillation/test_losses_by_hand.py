"""Weights after some steps equal those of a loss written into the module: to the bit, in the same arithmetic."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher
from lightning_optim.distillation import (
    CRD,
    DKD,
    RKD,
    VID,
    AttentionMap,
    GeneralizedJSD,
    Huber,
    MeanSquaredError,
    SoftTarget,
)
from lightning_optim.errors import SampleError, TapError
from lightning_optim.schedule import Linear
from support import quiet

pytestmark = pytest.mark.filterwarnings("ignore")
PLACES = {"student": "net.block"}


class Net(nn.Module):
    def __init__(self, width, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem, self.block = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(F.relu(self.block(F.relu(self.stem(x)))).mean((2, 3)))


class Student(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net(3, 0)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), 1e-2)


class ByHand(Student):
    """Adds a loss of the two networks' block outputs and logits, whose learned parts have an optimizer of their own."""

    def __init__(self, written):
        super().__init__()
        self.teacher = [Net(5, 100).requires_grad_(False).eval()]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.written = [written()]
        self.learned = [*self.written[0].parameters()]
        self.own = torch.optim.AdamW(self.learned, 1e-2) if self.learned else None

    def training_step(self, batch, batch_idx):
        seen = []
        handles = [net.block.register_forward_hook(lambda _, __, out: seen.append(out)) for net in self.nets()]
        logits, theirs = self.net(batch[0]), self.teacher[0](batch[0])
        for handle in handles:
            handle.remove()
        with torch.autocast("cpu", enabled=False):
            transfer = self.written[0](seen[0].float(), seen[1].float(), logits.float(), theirs.float(), batch[1])
        return F.cross_entropy(logits, batch[1]) * 0.5 + 2.0 * transfer

    def nets(self):
        return self.net, self.teacher[0]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.own is not None and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.own.step()
            self.own.zero_grad()


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter((torch.full((5,), 5.0 - 1e-5).double().expm1().log()).float())
        self.mean = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))

    def forward(self, mine, theirs, *_):
        variance = F.softplus(self.alpha) + 1e-5
        mean = self.mean(mine.permute(0, 2, 3, 1).flatten(1, 2))
        return 0.5 * (variance.log() + (theirs.permute(0, 2, 3, 1).flatten(1, 2) - mean) ** 2 / variance).mean()


def direction(vectors):
    scaled = vectors / vectors.detach().abs().amax(1, keepdim=True)
    return scaled * (scaled**2).sum(1, keepdim=True).rsqrt()


class Contrast(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(5, 8)

    def forward(self, mine, theirs, *_):
        first = self.first(mine.permute(0, 2, 3, 1).flatten(1, 2).mean(1))
        second = self.second(theirs.permute(0, 2, 3, 1).flatten(1, 2).mean(1))
        scores = direction(first) @ direction(second).T / 0.5
        labels = torch.arange(len(scores))
        return F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)


class Maps(nn.Module):
    def forward(self, mine, theirs, *_):
        mine, theirs = (direction((each.abs() ** 2.0).mean(1).flatten(1)) for each in (mine, theirs))
        return 0.5 * ((mine - theirs) ** 2).sum(1).mean()


class Decoupled(nn.Module):
    def forward(self, mine, theirs, logits, answers, labels):
        is_label = F.one_hot(labels, 4).bool()
        p, q = (logits / 4.0).softmax(1), (answers / 4.0).softmax(1)
        binary = [torch.stack([each[is_label], 1.0 - each[is_label]], 1) for each in (p, q)]
        others = [each[~is_label].view(-1, 3) / (1.0 - each[is_label])[:, None] for each in (p, q)]
        parts = [(b * (b / a).log()).sum(1).mean() for a, b in (binary, others)]
        return 16.0 * (parts[0] + 8.0 * parts[1])


class Mixture(nn.Module):
    def forward(self, mine, theirs, logits, answers, labels):
        p, q = logits.softmax(1), answers.softmax(1)
        m = 0.5 * (p + q)
        return 0.5 * ((q * (q / m).log()).sum(1).mean() + (p * (p / m).log()).sum(1).mean())


class Square(nn.Module):
    def forward(self, mine, theirs, logits, answers, labels):
        return F.mse_loss(logits, answers)


class Line(nn.Module):
    def forward(self, mine, theirs, logits, answers, labels):
        return F.huber_loss(logits, answers, delta=0.2)


class Cooling(nn.Module):
    """Soft targets whose temperature falls over all twelve batches of the fit."""

    num_batches = 0

    def forward(self, mine, theirs, logits, answers, labels):
        temperature = 8.0 - 6.0 * self.num_batches / 12
        self.num_batches += 1
        p, q = (logits / temperature).log_softmax(1), (answers / temperature).log_softmax(1)
        return temperature**2 * (q.exp() * (q - p)).sum(1).mean()


CASES = {
    "schedule": (SoftTarget(temperature=Linear(start=8.0, end=2.0)), Cooling),
    "vid": (VID(**PLACES, learning_rate=1e-2), Variational),
    "crd": (CRD(**PLACES, learning_rate=1e-2, dimension=8, temperature=0.5), Contrast),
    "attention_map": (AttentionMap(**PLACES), Maps),
    "dkd": (DKD(), Decoupled),
    "generalized_jsd": (GeneralizedJSD(), Mixture),
    "mean_squared_error": (MeanSquaredError(), Square),
    "huber": (Huber(delta=0.2), Line),
}


ROUNDED = {"dkd", "generalized_jsd"}  # written with probabilities in place of their logarithms


def data(size=24):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(size, 1, 6, 6, generator=generator), torch.randint(0, 4, (size,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def distilling(loss):
    return DistillationTeacher(teacher=Net(5, 100), losses={"loss": loss}, weight=2.0, hard_weight=0.5)


def fit(module, *callbacks, size=24, **settings):
    torch.manual_seed(7)
    quiet(*callbacks, max_epochs=2, **settings).fit(module, data(size))


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("case", CASES)
def test_weights_and_what_learns_equal_the_hand_written(case, settings):
    loss, written = CASES[case]
    close = {"rtol": 1e-4, "atol": 1e-5} if case in ROUNDED else {"rtol": 0.0, "atol": 0.0}
    student, callback, reference = Student(), distilling(loss), ByHand(written)
    fit(student, callback, **settings)
    fit(reference, **settings)
    for name, tensor in student.net.state_dict().items():
        torch.testing.assert_close(tensor, reference.net.state_dict()[name], **close)
    values = callback.state_dict().get("learned", {}).get("loss", {}).get("values", [])
    assert len(values) == len(reference.learned)
    for value, parameter in zip(values, reference.learned, strict=True):
        torch.testing.assert_close(value, parameter.detach(), **close)


def test_an_example_input_of_one_sample_refuses_nothing():
    for loss in (RKD(student="net.head:input"), CRD(student="net.head:input"), DKD()):
        student = Student()
        student.example_input_array = torch.zeros(1, 1, 6, 6)
        fit(student, distilling(loss))


def test_a_last_batch_of_one_is_refused_with_what_to_do():
    with pytest.raises(SampleError, match=r"RKD compares samples .*drop_last=True where the last one is smaller"):
        fit(Student(), distilling(RKD(student="net.block")), size=5)


def test_labels_that_the_batch_does_not_hold_are_refused_before_any_step():
    student = Student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(SampleError, match="DKD needs integer labels"):
        fit(student, distilling(DKD(labels="y")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_features_that_no_trainable_weight_has_made_are_refused_before_any_step():
    student = Student()
    student.net.stem.requires_grad_(False)
    student.net.block.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(TapError, match=r"features at 'net.block' have no gradient, so a loss on them would teach"):
        fit(student, distilling(AttentionMap(**PLACES)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
