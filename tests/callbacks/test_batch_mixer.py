"""Mixed batches: weights equal to those of a module that mixes in its own step, with one forward pass."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_optim import BatchMixer, DropoutScheduler, Targets, Window
from lightning_optim.errors import SampleError, TapError, TargetError
from lightning_optim.regularization import CutMix, Dropout, LabelSmoothing, Mixup
from lightning_optim.regularization.draws import random_for, seed_for
from lightning_optim.schedule import Linear
from support import quiet, run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")


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
        self.logged = []

    def read(self, batch):
        return batch

    def loss(self, logits, y):
        return F.cross_entropy(F.dropout(logits, 0.1), y)

    def note(self, logits, y):
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
    assert left.logged == right.logged
    for name in ("accuracy", "seen"):
        one, other = getattr(left, name), getattr(right, name)
        assert same([one.update_count, one.metric_state], [other.update_count, other.metric_state])
    assert same(left.both.compute(), right.both.compute())


SETTINGS = [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_metrics_and_logs_equal_those_of_mixup_in_the_step(settings):
    added, written = fit(Module(), mixer(), **settings), fit(Written(), **settings)
    ended_alike(added, written)
    assert added.net.runs == 12
    assert not same(dict(added.state_dict()), dict(fit(Module(), **settings).state_dict()))
    assert "training_step" not in vars(added)


class WrittenCutMix(Module):
    def training_step(self, batch, batch_idx):
        x, y = self.read(batch)
        order, w, random = drawn(self.trainer.fit_loop.epoch_loop.total_batch_idx, 0, len(x), 1.0)
        side = int((1 - w) ** 0.5 * 6) // 2
        rows, columns = ((max(c - side, 0), min(c + side, 6)) for c in (random.randrange(6), random.randrange(6)))
        mixed = x.clone()
        mixed[:, :, rows[0] : rows[1], columns[0] : columns[1]] = x[order][
            :, :, rows[0] : rows[1], columns[0] : columns[1]
        ]
        w = 1 - (rows[1] - rows[0]) * (columns[1] - columns[0]) / 36
        logits = self.net(mixed + 0.01 * torch.randn_like(x))
        self.note(logits, y)
        before = torch.get_rng_state()
        own = self.loss(logits, y)
        torch.set_rng_state(before)
        return w * own + (1 - w) * self.loss(logits, y[order])


def test_weights_metrics_and_logs_equal_those_of_cutmix_in_the_step():
    ended_alike(fit(Module(), mixer(CutMix())), fit(WrittenCutMix()))


@dataclass
class Pair:
    image: Tensor
    kind: Tensor
    names: list[str]


def as_dict(samples):
    x, y = map(torch.stack, zip(*samples, strict=True))
    return {"image": x, "about": {"kind": y, "scale": torch.ones(2)}, "names": ["a"] * len(y)}


def as_dataclass(samples):
    x, y = map(torch.stack, zip(*samples, strict=True))
    return Pair(x, y, ["a"] * len(y))


def as_views(samples):
    x, y = map(torch.stack, zip(*samples, strict=True))
    return [[0.5 * x, 0.5 * x], y, torch.arange(len(y))]


STRUCTURES = {
    "dict": (as_dict, lambda batch: (batch["image"], batch["about"]["kind"]), {}),
    "dataclass": (as_dataclass, lambda batch: (batch.image, batch.kind), {}),
    "several": (as_views, lambda batch: (batch[0][0] + batch[0][1], batch[1]), {"label_keys": [1]}),
    "named": (as_views, lambda batch: (batch[0][0] + batch[0][1], batch[1]), {"label_keys": [1], "input_keys": ["0"]}),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_batch_may_have_any_structure(structure):
    collate, read, keys = STRUCTURES[structure]
    ends = []
    for kind, callbacks in ((Module, [mixer(**keys)]), (Written, [])):
        module = type("Reads", (kind,), {"read": lambda self, batch: read(batch)})()
        ends.append(fit(module, *callbacks, loader=data(collate)))
    if structure in ("several", "named"):  # the sum of two means is the mean of two sums but for rounding
        for name, value in ends[0].net.state_dict().items():
            torch.testing.assert_close(value, ends[1].net.state_dict()[name], rtol=1e-3, atol=1e-4)
    else:
        ended_alike(*ends)


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


@pytest.mark.parametrize("num_classes", [None, 4])
def test_float_labels_equal_those_that_are_made_in_the_step(num_classes):
    ended_alike(fit(TakesSoft(), mixer(labels="soft", num_classes=num_classes)), fit(Soft()))
    if num_classes is not None:
        ended_alike(fit(ManualSoft(), mixer(labels="soft", num_classes=num_classes)), fit(Soft()))


def test_labels_are_smoothed_with_mixing_and_without():
    smooth = type("Smooth", (Soft,), {"smoothing": 0.1})
    both = {"mixup": Mixup(alpha=0.4), "smooth": LabelSmoothing(smoothing=0.1)}
    ended_alike(fit(TakesSoft(), mixer(both, labels="soft")), fit(smooth()))

    class Alone(TakesSoft):
        def loss(self, logits, y):
            return F.cross_entropy(F.dropout(logits, 0.1), y, label_smoothing=0.1)

    added, written = fit(TakesSoft(), mixer(LabelSmoothing(), labels="soft")), fit(Alone())
    for name, value in written.state_dict().items():
        torch.testing.assert_close(added.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_labels_of_words_are_smoothed_without_an_input_in_floating_point():
    class Words(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.EmbeddingBag(9, 8), nn.Linear(8, 4))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        configure_optimizers = Module.configure_optimizers

    class WrittenWords(Words):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), 0.9 * F.one_hot(batch[1], 4).float() + 0.1 / 4)

    words = torch.randint(0, 9, (24, 5), generator=torch.Generator().manual_seed(2))
    loader = DataLoader(TensorDataset(words, tensors()[1]), batch_size=4)
    added = fit(Words(), mixer(LabelSmoothing(), labels="soft", label_keys=[1]), loader=loader)
    assert same(dict(added.state_dict()), dict(fit(WrittenWords(), loader=loader).state_dict()))


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


def test_several_labels_are_mixed_and_masks_too():
    keys = {"label_keys": ["mask", "kind"]}
    added, written = (
        fit(Segments(), mixer(**keys), loader=data(segments)),
        fit(WrittenSegments(), loader=data(segments)),
    )
    assert same(dict(added.state_dict()), dict(written.state_dict()))
    refused(
        Segments(), mixer(CutMix(), **keys), "'mask' has a label for each pixel, .* use Mixup", loader=data(segments)
    )
    says = (
        r"any of \['kind', 'mask'\] may be the label; .*'x' \(float32 \[4, 1, 6, 6\]\).* name the labels in label_keys"
    )
    refused(Segments(), mixer(), says, loader=data(segments))


def refused(module, callback, says, error=SampleError, *, loader=None, **settings):
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    with pytest.raises(error, match=says):
        fit(module, callback, loader=loader, **settings)
    assert same(before, dict(module.named_parameters()))
    assert "training_step" not in vars(module)


def test_labels_that_mixing_cannot_mix_are_refused_in_the_first_batch():
    x, y = tensors()

    def loader(*entries):
        return DataLoader(TensorDataset(*entries), batch_size=4)

    refused(Module(), mixer(), "no tensor of integers has a label for each sample", loader=loader(x, y.float()))
    refused(Module(), mixer(), r"any of \['1', '2'\] may be the label", loader=loader(x, y, y))
    refused(Module(), mixer(), "nothing to mix: no tensor in floating point has 4 samples", loader=loader(y))
    refused(Module(), mixer(label_keys=["kind"]), "label_keys names 'kind', but the batch holds '0' .float32")
    refused(Module(), mixer(input_keys=["1"], label_keys=["1"]), "the input '1' must have 4 samples")
    says = "'1' holds [3-9] to [3-9], but there are 3 classes from 0 on; use labels='mix_loss'"
    refused(TakesSoft(), mixer(labels="soft", num_classes=3), says, loader=loader(x, y + 3))
    counts = DataLoader([(x[:4], torch.tensor(3))], batch_size=None)
    refused(Module(), mixer(label_keys=[1]), r"\['1'\] must have one entry for each sample", loader=counts)


def test_numbers_may_be_labels_where_they_are_named():
    class Regression(Module):
        def loss(self, logits, y):
            return F.mse_loss(logits[:, 0], y)

        def note(self, logits, y): ...

    class WrittenRegression(Regression, Written): ...

    loader = DataLoader(TensorDataset(tensors()[0], tensors()[1].float()), batch_size=4)
    added = fit(Regression(), mixer(label_keys=[1]), loader=loader)
    assert same(dict(added.state_dict()), dict(fit(WrittenRegression(), loader=loader).state_dict()))


def test_a_step_that_float_labels_do_not_suit_is_refused_by_name_in_the_first_batch():
    class Strict(Module):
        def loss(self, logits, y):
            return F.nll_loss(logits.log_softmax(1), y)

    class Silent(Strict):
        def note(self, logits, y): ...

    says = r"training_step does not take the labels as probabilities \[B, 4\], with which it fails: .*labels='mix_loss'"
    refused(Silent(), mixer(labels="soft"), f"Silent.{says}")
    refused(Strict(), mixer(labels="soft", num_classes=4), f"Strict.{says}")


def test_a_step_that_cannot_run_twice_with_one_pass_is_refused():
    class Parts(Module):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.net.head(self.net.norm(self.net.stem(x)).mean((2, 3))), y)

    class Conditional(Module):
        def __init__(self):
            super().__init__()
            self.net.forward = lambda x, y: self.net.head(x.mean((2, 3)).expand(-1, 6)) + F.one_hot(y, 4)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(*batch), batch[1])

    class Outside(Module):
        def __init__(self):
            super().__init__()
            self.last = nn.BatchNorm1d(4)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.last(self.net(batch[0])), batch[1])

    class Reentrant(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(checkpoint(self.net, batch[0].requires_grad_(), use_reentrant=True), batch[1])

    refused(Parts(), mixer(), "training_step did not call the network .* set network", TapError)
    refused(Conditional(), mixer(), "the network is given something that depends on them")

    class Teaching(Module):
        def __init__(self):
            super().__init__()
            self.slow = nn.Linear(6, 4).requires_grad_(False)

        def training_step(self, batch, batch_idx):
            for slow, own in zip(self.slow.parameters(), self.net.head.parameters(), strict=True):
                slow.data.lerp_(own.data, 0.1)
            return super().training_step(batch, batch_idx)

    class InPlace(Module):
        def loss(self, logits, y):
            return F.cross_entropy(logits.div_(2.0), y)

    refused(InPlace(), mixer(), "changes in place what the network has put out", TapError)
    with pytest.raises(
        SampleError, match=r"'slow\.weight' changes each time that training_step runs, which it does twice"
    ):
        fit(Teaching(), mixer(network="net"))
    refused(Outside(), mixer(network="net"), "'last.running_mean' changes each time that training_step runs")
    refused(Reentrant(), mixer(), "use_reentrant=False", TapError)
    manual = ManualSoft()
    refused(manual, mixer(), "under manual optimization .* use labels='soft' and set num_classes", ValueError)
    refused(manual, mixer(labels="soft"), "without num_classes, .* under manual optimization .*: set num", ValueError)


def test_a_network_in_a_checkpoint_or_compiled_trains_as_the_plain_one():
    class Saved(Module):
        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = checkpoint(self.net, x + 0.01 * torch.randn_like(x), use_reentrant=False)
            self.note(logits, y)
            return self.loss(logits, y)

    compiled, expected = Module(), fit(Module(), mixer())
    compiled.net = torch.compile(compiled.net, backend="eager")
    fit(compiled, mixer())
    for name, value in expected.net.state_dict().items():
        torch.testing.assert_close(compiled.net.state_dict()[f"_orig_mod.{name}"], value)
    saved = fit(Saved(), mixer())
    assert same(dict(saved.net.named_parameters()), dict(expected.net.named_parameters()))


def test_a_compiled_module_is_refused_where_its_step_would_run_twice():
    module = Module()
    with pytest.raises(TargetError, match=r"which code of torch.compile cannot do: use labels='soft' .* or compile"):
        quiet(mixer(), max_epochs=1).fit(torch.compile(module, backend="eager"), data())


def test_the_module_itself_may_be_the_network_and_call_its_forward():
    class Root(Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.net(x))

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self.forward(x + 0.01 * torch.randn_like(x))
            self.note(logits, y)
            return self.loss(logits, y)

    class WrittenRoot(Root):
        def training_step(self, batch, batch_idx):
            order, w, _ = drawn(self.trainer.fit_loop.epoch_loop.total_batch_idx, 0, 4, 0.4)
            x, y = batch
            x = w * x + (1 - w) * x[order]
            logits = self.last(self.net(x + 0.01 * torch.randn_like(x)))
            self.note(logits, y)
            before = torch.get_rng_state()
            own = self.loss(logits, y)
            torch.set_rng_state(before)
            return w * own + (1 - w) * self.loss(logits, y[order])

    ended_alike(fit(Root(), mixer()), fit(WrittenRoot()))


@pytest.mark.parametrize("order", [1, -1])
def test_what_lies_behind_the_network_drops_alike_in_both_runs(order):
    class Behind(Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)

        def last_of(self, logits):
            return self.last(logits)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.last_of(self.net(batch[0])), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    class WrittenBehind(Behind):
        def training_step(self, batch, batch_idx):
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            order, w, _ = drawn(number, 0, 4, 0.4)
            generator = torch.Generator().manual_seed(seed_for("dropout", "", 0, number, 0, "dropout/last", 0))
            logits = self.last(self.net(w * batch[0] + (1 - w) * batch[0][order]))
            logits = logits * torch.empty_like(logits).bernoulli_(0.5, generator=generator) / 0.5
            return w * F.cross_entropy(logits, batch[1]) + (1 - w) * F.cross_entropy(logits, batch[1][order])

    drops = DropoutScheduler(dropout=Dropout(), probability=0.5, targets=Targets(include=("last",)))
    added, written = fit(Behind(), *[mixer(network="net"), drops][::order]), fit(WrittenBehind())
    for name, value in written.state_dict().items():
        torch.testing.assert_close(added.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_step_may_return_a_dictionary_or_nothing():
    class Odd(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else {"loss": loss, "logits": loss.detach()}

    class WrittenOdd(Written):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else {"loss": loss}

    assert same(dict(fit(Odd(), mixer()).net.named_parameters()), dict(fit(WrittenOdd()).net.named_parameters()))


def test_a_step_may_change_its_batch_in_place():
    class InPlace(Module):
        def read(self, batch):
            batch[0].mul_(2.0)
            return batch

        def training_step(self, batch, batch_idx):
            x, y = self.read(batch)
            return self.loss(self.net(x), y) * x.square().mean()

    class Twice(InPlace):
        def read(self, batch):
            return 2.0 * batch[0], batch[1]

    ends = [dict(fit(kind(), mixer()).state_dict()) for kind in (InPlace, Twice)]
    assert same(*ends)


class SaveHalf(Callback):
    def __init__(self, folder):
        self.path = folder / "half.ckpt"

    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_resumed_fit_is_bit_equal_and_draws_anew_for_each_batch(tmp_path):
    class Plain(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    def make():
        return mixer({"a": Mixup(), "b": CutMix()}, probability=Linear(start=0.2, end=1.0), seed=3)

    save = SaveHalf(tmp_path)
    whole = fit(Plain(), make(), save)
    assert same(dict(fit(Plain(), make(), ckpt_path=save.path).state_dict()), dict(whole.state_dict()))
    assert not same(dict(fit(Plain(), mixer(seed=4)).state_dict()), dict(fit(Plain(), mixer(seed=3)).state_dict()))


def test_batches_are_mixed_in_their_window_with_their_probability():
    seen, soft = [], {"labels": "soft", "num_classes": 4}

    class Spy(TakesSoft):
        def training_step(self, batch, batch_idx):
            seen.append(all(any(torch.equal(row, own) for own in tensors()[0]) for row in batch[0]))
            return super().training_step(batch, batch_idx)

    loader = DataLoader(TensorDataset(*tensors()), batch_size=12)
    fit(Spy(), mixer(Mixup(alpha=50.0), window=Window(begin=4, unit="step"), **soft), max_epochs=3, loader=loader)
    assert seen == [True] * 4 + [False] * 2
    seen.clear()
    fit(Spy(), mixer(CutMix(alpha=50.0), probability=0.5, **soft), max_epochs=30, loader=loader)
    assert 18 <= sum(seen) <= 42
    assert seen == [random_for("mixed", 0, number).random() >= 0.5 for number in range(60)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mixing": {}}, "at least one mixing"),
        ({"mixing": LabelSmoothing()}, r"set labels='soft', or .* nn.CrossEntropyLoss\(label_smoothing=...\)"),
        ({"labels": "hard"}, "labels must be 'mix_loss' or 'soft', got 'hard'"),
        ({"probability": 1.5}, r"probability must lie in \[0, 1\], got 1.5"),
        ({"probability": Linear(end=2.0)}, r"probability must lie in \[0, 1\]"),
        ({"probability": 0.0}, "nothing to do"),
        ({"num_classes": 1, "labels": "soft"}, "num_classes must be at least 2"),
        ({"num_classes": 4}, "num_classes has no effect with labels='mix_loss'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        BatchMixer(**{"mixing": Mixup()} | settings)


def test_two_mixers_are_refused():
    with pytest.raises(ValueError, match="two BatchMixers would mix what the other has mixed"):
        fit(Module(), mixer(name="a"), mixer(name="b"))


def test_two_ranks_mix_differently_and_end_as_mixup_in_the_step(tmp_path):
    run_script(Path(__file__).with_name("mixing_on_two_ranks.py"), cwd=tmp_path)
