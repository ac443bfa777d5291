"""Every pair of callbacks in one fit of four steps, and all at once: equal to a step written by hand, or refused.

The step by hand is a plain loop, put together from what each callback does to a step. A new callback is an entry of
``CALLBACKS`` and a part of ``ByHand``.
"""

import copy
import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
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
from lightning_optim.distillation import Hint, SoftTarget
from lightning_optim.functional import soft_target_loss
from lightning_optim.nas import ElasticWidth, OperationChoice
from lightning_optim.quantization import Affine, MovingAverage, Symmetric
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.regularization import L1, L2, SAM, Mixup, PresentDropout
from lightning_optim.regularization.draws import random_for, seed_for
from lightning_optim.schedule import Constant, Linear
from support import quiet, same

STEPS, SIZE, MASKED_AT, RHO = 4, 6, 2, 0.1


class Net(nn.Module):
    def __init__(self, width, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
            self.top, self.drop, self.head = nn.Conv2d(width, 5, 3), nn.Dropout(0.2), nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.top(F.relu(self.norm(self.stem(x)))))
        return self.head(self.drop(x.mean((2, 3))))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net(6, seed=0)
        self.example_input_array = torch.zeros(2, 1, 6, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def teaching():
    losses = {"soft": SoftTarget(temperature=2.0), "hint": Hint(student="net.top", teacher="top", projection="always")}
    return DistillationTeacher(teacher=Net(8, seed=1), losses=losses, weight=0.5, hard_weight=0.7)


def searching_widths():
    return NASSupernet(space={"width": ElasticWidth(targets=Targets(include=("net.stem",)))}, search_at="call")


def searching_operations():
    larger = partial(nn.Conv2d, 1, 6, 5, padding=2)
    space = {"kernel": OperationChoice(targets=Targets(include=("net.stem",)), candidates={"larger": larger})}
    return NASSupernet(space=space, search_at="call")


def penalizing():
    penalties, strength = {"l1": L1(), "decay": L2()}, {"l1": 0.01, "decay": 0.5}
    return PenaltyRegularizer(penalties=penalties, strength=strength, decoupled=("decay",))


def pruning():
    window = Window(begin=MASKED_AT, end=MASKED_AT + 1, unit="step")
    return PruningScheduler(schedule=Constant(value=0.5), window=window)


CALLBACKS = {
    "masks": pruning,
    "teacher": teaching,
    "quantization": QATFakeQuant,
    "widths": searching_widths,
    "operations": searching_operations,
    "penalties": penalizing,
    "mixing": lambda: BatchMixer(mixing=Mixup(alpha=0.4)),
    "dropout": lambda: DropoutScheduler(dropout=PresentDropout(), probability=Linear(start=0.0, end=0.8)),
    "sharpness": lambda: SharpnessAware(sharpness=SAM(rho=RHO)),
}
REFUSED = {frozenset({"quantization", "widths"}): "NASSupernet runs 'norm' at several widths"}
SPACES = {"widths", "operations"}  # of one callback


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * SIZE, 1, 6, 6, generator=generator)
    return TensorDataset(x, torch.randint(0, 4, (len(x),), generator=generator))


class ByHand:
    """What callbacks do to a step, each in a part of its own; losses are added in the order of the list."""

    def __init__(self, parts):
        self.parts, self.module = parts, Module()
        searched = next((part for part in parts if part in SPACES), None)
        self.supernet = None if searched is None else CALLBACKS[searched]().convert(self.module)
        self.net, self.optimizer = self.module.net, self.module.configure_optimizers()
        self.weights, self.masks = [weight for weight in self.net.parameters() if weight.ndim > 1], []
        self.simulator = Simulator(Symmetric(), Affine(), MovingAverage())
        self.teacher, self.projection, self.features = Net(8, seed=1).eval(), None, {}
        for name, net in (("mine", self.net), ("theirs", self.teacher)):
            net.top.register_forward_hook(lambda *args, name=name: self.features.update({name: args[-1]}))

    def fit(self):
        torch.manual_seed(3)
        for step, (x, y) in enumerate(DataLoader(batches(), SIZE)):
            if self.supernet is not None:
                self.supernet.activate(self.supernet.sample(0, step))
            if "masks" in self.parts and step == MASKED_AT:
                self.mask()
            if "dropout" in self.parts:
                self.net.drop.forward = partial(self.dropped, step)
            samples, labels = self.mixed(step, x, y) if "mixing" in self.parts else (x, {y: 1.0})
            loss, put_back = self.loss(step, samples, labels, is_first=True), lambda: None
            if "sharpness" in self.parts:
                loss, put_back = self.sharpened(loss, step, samples, labels)
            self.optimizer.zero_grad()
            loss.backward()
            put_back()
            self.optimizer.step()
            self.end(step)
        learned = [] if self.projection is None else [each.detach() for each in self.projection.parameters()]
        ranges = [self.simulator.ranges.state_dict()] if "quantization" in self.parts else []
        return dict(self.module.state_dict()), learned, ranges

    @staticmethod
    def dropped(step, x):
        with torch.random.fork_rng():
            torch.manual_seed(seed_for("dropout", "", 0, step, 0, "present_dropout/net.drop", 0))
            return F.dropout(x, 0.8 * step / STEPS)

    def mixed(self, step, x, y):
        random = random_for("mixing", 0, step, 0)
        order = random.sample(range(len(x)), len(x))
        random.choice([0])
        share = random.betavariate(0.4, 0.4)
        return share * x + (1.0 - share) * x[order], {y: share, y[order]: 1.0 - share}

    def loss(self, step, x, labels, *, is_first):
        self.numbers = torch.get_rng_state() if is_first else torch.set_rng_state(self.numbers)
        self.buffers = [each.clone() for each in self.net.buffers()] if is_first else self.buffers
        logits = self.simulated(step, x, is_first=is_first) if "quantization" in self.parts else self.net(x)
        total = sum(share * F.cross_entropy(logits, y) for y, share in labels.items())
        for part in self.parts:
            if part == "penalties":
                total = total + 0.01 * torch.stack([weight.abs().sum() for weight in self.weights]).sum()
            elif part == "teacher":
                total = self.taught(total, logits, x)
        return total

    def taught(self, total, logits, x):
        mine = self.features["mine"]
        with torch.no_grad():
            answer, theirs = self.teacher(x), self.features["theirs"]
        if self.projection is None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.projection = nn.Linear(5, 5)
            self.own = torch.optim.AdamW(self.projection.parameters(), 1e-3)
        hint = F.mse_loss(self.projection(mine.movedim(1, -1)).movedim(-1, 1), theirs)
        return 0.7 * total + 0.5 * soft_target_loss(logits, answer, 2.0) + 0.5 * hint

    def simulated(self, step, x, *, is_first):
        self.before = copy.deepcopy(self.simulator) if is_first else self.before
        simulator = self.simulator if is_first else self.before
        with simulator.observing():
            return simulator.run(self.net, self.net.forward, (x,), {}, fold=step / STEPS >= 0.5)

    def sharpened(self, loss, step, x, labels):
        weights, left = list(self.net.parameters()), [each.clone() for each in self.net.buffers()]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        weights = [weight for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]
        gradients = [gradient for gradient in gradients if gradient is not None]
        kept = [weight.detach().clone() for weight in weights]
        masks = dict(zip(map(id, self.weights), self.masks, strict=False))
        gradients = [each * masks.get(id(weight), 1.0) for weight, each in zip(weights, gradients, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients]))
        moves = [gradient * (RHO / (norm + 1e-12)) for gradient in gradients]
        self.set(weights, [value + move for value, move in zip(kept, moves, strict=True)])
        self.set(self.net.buffers(), self.buffers)

        def put_back():
            self.set(weights, kept)
            self.set(self.net.buffers(), left)

        return self.loss(step, x, labels, is_first=False), put_back

    def mask(self):
        for weight in self.weights:
            smallest = weight.detach().abs().flatten().argsort(stable=True)[: round(0.5 * weight.numel())]
            mask = torch.ones(weight.numel()).index_fill(0, smallest, 0.0).view_as(weight)
            self.masks.append(mask)
            moment = self.optimizer.state[weight].get("momentum_buffer", mask)  # what never ran has none
            self.set([weight, moment], [weight * mask, moment * mask])

    def end(self, step):
        if "penalties" in self.parts:
            self.set(self.weights, [weight * (1.0 - 0.1 * 0.5) for weight in self.weights])
        self.set(self.weights, [weight * mask for weight, mask in zip(self.weights, self.masks, strict=False)])
        if "teacher" in self.parts:
            self.own.step()
            self.own.zero_grad()
        if "quantization" in self.parts:
            self.simulator.finish_batch()

    @staticmethod
    @torch.no_grad()
    def set(tensors, values):
        for tensor, value in zip(tensors, values, strict=False):
            tensor.copy_(value)


def fit(parts, kind=Module):
    module, callbacks = kind(), [CALLBACKS[part]() for part in parts]
    torch.manual_seed(3)
    quiet(*callbacks, max_epochs=1, num_sanity_val_steps=0).fit(module, DataLoader(batches(), SIZE))
    states = {part: callback.state_dict() for part, callback in zip(parts, callbacks, strict=True)}
    learned = states["teacher"]["learned"]["hint"]["values"] if "teacher" in parts else []
    return dict(module.state_dict()), learned, [states[part]["ranges"] for part in parts if part == "quantization"]


PAIRS = [pair for pair in itertools.permutations(CALLBACKS, 2) if set(pair) != SPACES]
ALONE = [(), *((part,) for part in CALLBACKS)]
ALL = tuple(part for part in CALLBACKS if part != "widths")


@pytest.mark.parametrize("parts", [*ALONE, *PAIRS, ALL, ALL[::-1]], ids="+".join)
def test_a_pair_of_callbacks_is_the_step_with_both_written_by_hand(parts):
    if frozenset(parts) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[frozenset(parts)]):
            fit(parts)
        return
    for found, expected in zip(fit(parts), ByHand(parts).fit(), strict=True):
        assert same(found, expected)


@pytest.mark.parametrize(
    "parts", [pair for pair in PAIRS if "sharpness" in pair and "mixing" not in pair], ids="+".join
)
def test_a_manual_step_in_two_passes_is_so_too(parts):
    for found, expected in zip(fit(parts, Manual), ByHand(parts).fit(), strict=True):
        assert same(found, expected)
