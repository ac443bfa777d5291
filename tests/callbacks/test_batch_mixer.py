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

from lightning_optim import DropoutScheduler, Targets, Window
from lightning_optim.regularization import CutMix, Dropout, LabelSmoothing, Mixup
from lightning_optim.regularization.draws import random_for, seed_for
from lightning_optim.schedule import Linear
from mixing_by_hand import (
    ManualSoft,
    Module,
    Segments,
    Soft,
    TakesSoft,
    Written,
    WrittenSegments,
    data,
    drawn,
    ended_alike,
    fit,
    mixer,
    segments,
    tensors,
)
from support import run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_several_labels_are_mixed_and_masks_too():
    keys = {"label_keys": ["mask", "kind"]}
    added, written = (
        fit(Segments(), mixer(**keys), loader=data(segments)),
        fit(WrittenSegments(), loader=data(segments)),
    )
    assert same(dict(added.state_dict()), dict(written.state_dict()))


def test_numbers_may_be_labels_where_they_are_named():
    class Regression(Module):
        def loss(self, logits, y):
            return F.mse_loss(logits[:, 0], y)

        def note(self, logits, y): ...

    class WrittenRegression(Regression, Written): ...

    loader = DataLoader(TensorDataset(tensors()[0], tensors()[1].float()), batch_size=4)
    added = fit(Regression(), mixer(label_keys=[1]), loader=loader)
    assert same(dict(added.state_dict()), dict(fit(WrittenRegression(), loader=loader).state_dict()))


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


@pytest.mark.slow
def test_two_ranks_mix_differently_and_end_as_mixup_in_the_step(tmp_path):
    run_script(Path(__file__).with_name("mixing_on_two_ranks.py"), cwd=tmp_path)
