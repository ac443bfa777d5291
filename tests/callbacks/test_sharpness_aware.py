"""Sharpness-aware steps: weights equal to those of SAM that is written into the module, bit for bit."""

import copy
import random
from pathlib import Path

import numpy
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_optim import PruningScheduler, SharpnessAware, Targets, Window
from lightning_optim.errors import TapError
from lightning_optim.pruning import Channel, Wanda
from lightning_optim.regularization import ASAM, SAM
from lightning_optim.schedule import Constant, Linear
from support import quiet, run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.norm(self.stem(x))).mean((2, 3))))


class Module(LightningModule):
    optimizer = torch.optim.AdamW

    def __init__(self):
        super().__init__()
        self.net, self.loss, self.seen, self.count = Net(), MeanMetric(), [], 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x + 0.1 * self.global_rank), y)
        self.loss(loss)
        self.seen.append(batch_idx)
        self.count += 1
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("metric", self.loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), 1e-2)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Written(Module):
    """SAM by hand: what the callback does, without the callback."""

    rho, eta, accumulation, clip, names = 0.05, None, 1, None, ("stem", "norm", "head")

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def moved(self):
        return [weight for name in self.names for weight in getattr(self.net, name).parameters()]

    def moves(self, weights, gradients):
        sizes = [1.0 if self.eta is None else weight.abs() + self.eta for weight in weights]
        scaled = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in scaled]))
        return [size * each * (self.rho / (norm + 1e-12)) for size, each in zip(sizes, scaled, strict=True)]

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        if batch_idx % self.accumulation == 0:
            optimizer.zero_grad()
        numbers, weights = torch.get_rng_state(), self.moved()
        first = super().training_step(batch, batch_idx)
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            moves = self.moves(weights, torch.autograd.grad(first, weights))
            for weight, move in zip(weights, moves, strict=True):
                weight.add_(move)
        torch.set_rng_state(numbers)
        self.net.norm.momentum = 0.0
        x, y = batch
        self.manual_backward(F.cross_entropy(self(x + 0.1 * self.global_rank), y) / self.accumulation)
        self.net.norm.momentum = 0.1
        self.net.norm.num_batches_tracked -= 1
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        if (batch_idx + 1) % self.accumulation == 0:
            if self.clip:
                self.clip_gradients(optimizer, self.clip)
            optimizer.step()


def data(batches=4):
    generator = torch.Generator().manual_seed(1)
    number = 6 * batches
    x, y = torch.randn(number, 1, 5, 5, generator=generator), torch.randint(0, 4, (number,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=6)


def fit(module, *callbacks, **settings):
    torch.manual_seed(3)
    trainer = quiet(*callbacks, **{"max_epochs": 2} | settings)
    trainer.fit(module, data())
    return dict(module.state_dict())


def written(**settings):
    module = Written()
    for name, value in settings.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("kind", [Module, Manual])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_is_sam_written_by_hand(kind, precision):
    module, by_hand = kind(), Written()
    found, expected = fit(module, SharpnessAware(), precision=precision), fit(by_hand, precision=precision)
    assert same(found, expected)
    assert not same(found, fit(kind(), precision=precision))
    assert (module.seen, module.count) == ([0, 1, 2, 3] * 2, 8)
    assert module.trainer.callback_metrics["loss_epoch"] == by_hand.trainer.callback_metrics["loss_epoch"]
    assert module.trainer.callback_metrics["metric"] == by_hand.trainer.callback_metrics["metric"]


def test_adaptive_of_some_layers_without_biases_and_scales():
    class Matrices(Written):
        eta, rho = 0.01, 0.5

        def moved(self):
            return [self.net.stem.weight]

    chosen = Targets(include=("net.*",), exclude=("net.head",))
    callback = SharpnessAware(sharpness=ASAM(rho=0.5, parameters="matrices"), targets=chosen)
    assert same(fit(Module(), callback), fit(Matrices()))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_batch_moves_on_its_own_and_clipping_sees_the_second_gradient(accumulation):
    settings = {"accumulate_grad_batches": accumulation, "gradient_clip_val": 0.05}
    found = fit(Module(), SharpnessAware(), **settings)
    assert same(found, fit(written(accumulation=accumulation, clip=0.05)))


@pytest.mark.slow
def test_under_ddp_each_rank_moves_on_its_own_and_all_end_equal(tmp_path):
    run_script(Path(__file__).with_name("sharpness_on_two_ranks.py"), cwd=tmp_path)


@pytest.mark.parametrize("kind", [Module, Manual])
def test_before_its_window_opens_steps_are_plain_and_rho_follows_a_schedule(kind):
    class Later(Written):
        def training_step(self, batch, batch_idx):
            step = 4 * self.current_epoch + batch_idx
            if step < 4:
                self.optimizers().zero_grad()
                self.manual_backward(Module.training_step(self, batch, batch_idx))
                self.optimizers().step()
                return None
            self.rho = 0.1 * (step - 4) / 4
            return super().training_step(batch, batch_idx)

    rho = SAM(rho=Linear(start=0.0, end=0.1))
    assert same(fit(kind(), SharpnessAware(sharpness=rho, window=Window(begin=0.5))), fit(Later()))


@pytest.mark.parametrize("kind", [Module, Manual])
def test_in_half_precision_the_first_gradient_is_unscaled_and_one_that_is_not_finite_moves_nothing(kind):
    class Bursting(kind):
        def forward(self, x):
            logits = super().forward(x)
            return logits * 1e30 if self.count % 4 == 1 else logits

    module, spy = Bursting(), Moves()
    plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1024.0))
    found = fit(module, SharpnessAware(), spy, accelerator="auto", plugins=[plugin], max_epochs=1)
    assert all(value.isfinite().all() for value in found.values() if value.is_floating_point())
    assert spy.lengths[1] == 0.0
    assert [round(length, 3) for length in spy.lengths] == [0.05, 0.0, 0.05, 0.05]


class Moves(Callback):
    """How far weights are from where the step began, when its backward begins."""

    def __init__(self):
        self.lengths = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [weight.detach().clone() for weight in pl_module.parameters()]

    def on_before_backward(self, trainer, pl_module, loss):
        pairs = zip(pl_module.parameters(), self.before, strict=True)
        self.lengths.append(float(sum(((one - other).detach() ** 2).sum() for one, other in pairs)) ** 0.5)

    def on_after_backward(self, trainer, pl_module):
        assert all(torch.equal(*pair) for pair in zip(pl_module.parameters(), self.before, strict=True))


@pytest.mark.parametrize("place", ["on_before_zero_grad", "on_before_backward"])
def test_an_exception_between_the_passes_puts_the_weights_back(place):
    class Fails(Moves):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self.state = copy.deepcopy(dict(pl_module.named_parameters()))

    def fail(*_):
        assert not same({name: value.data for name, value in spy.state.items()}, dict(weights()))
        raise RuntimeError("stopped here")

    def weights():
        return {name: value.detach() for name, value in module.named_parameters()}

    module, spy = Module(), Fails()
    setattr(spy, place, fail)
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(module, spy, SharpnessAware())
    assert same({name: value.data for name, value in spy.state.items()}, weights())
    assert "log" not in vars(module)
    assert not {"training_step", "backward"} & vars(module.trainer.strategy).keys()


def test_an_exception_in_the_second_pass_puts_everything_back():
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            calls.append(batch_idx)
            if len(calls) == 4:
                raise ValueError("stopped here")
            return super().training_step(batch, batch_idx)

    module, spy, calls = Fails(), Moves(), []
    with pytest.raises(ValueError, match="stopped here"):
        fit(module, SharpnessAware(), spy)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), spy.before, strict=True))
    assert module.count == 2


def test_both_passes_draw_the_same_numbers_whoever_draws_them():
    class Drawing(Module):
        def training_step(self, batch, batch_idx):
            drawn.append((random.random(), float(numpy.random.rand()), float(torch.rand(1))))
            return super().training_step(batch, batch_idx)

    drawn = []
    fit(Drawing(), SharpnessAware(), max_epochs=1)
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == 4


class TwoBackwards(Manual):
    def training_step(self, batch, batch_idx):
        loss = Module.training_step(self, batch, batch_idx)
        self.manual_backward(loss, retain_graph=True)
        self.manual_backward(loss)


class StepsFirst(Manual):
    def training_step(self, batch, batch_idx):
        Module.training_step(self, batch, batch_idx).backward()
        self.optimizers().step()


class NeverCalls(Manual):
    def training_step(self, batch, batch_idx):
        Module.training_step(self, batch, batch_idx).backward()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TwoBackwards, "calls self.manual_backward once, and this one called it again"),
        (StepsFirst, "takes an optimizer's step before that"),
        (NeverCalls, "no training step of this epoch called self.manual_backward"),
    ],
)
def test_a_manual_step_that_cannot_be_repeated_is_refused(kind, reason):
    module = kind()
    before = copy.deepcopy(dict(module.named_parameters()))
    with pytest.raises((ValueError, TapError), match=reason):
        fit(module, SharpnessAware())
    assert same({name: value.data for name, value in before.items()}, dict(module.named_parameters()))


class Toggling(Manual):
    """Freezes all but its head while its optimizer is toggled, up to the end of the step."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(Module.training_step(self, batch, batch_idx))
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.head.parameters(), 1e-2), torch.optim.AdamW(self.net.stem.parameters(), 1e-2)

    def optimizers(self):
        return super().optimizers()[0]


def test_only_what_a_toggled_optimizer_trains_moves_and_all_is_trained_again_afterwards():
    class HeadAlone(Written):
        names = ("head",)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.net.head.parameters(), 1e-2)

    module = Toggling()
    found, expected = fit(module, SharpnessAware()), fit(HeadAlone())
    assert same(found, expected)
    assert all(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SharpnessAware(sharpness=SAM(rho=0.0)), "rho must be above 0"),
        (lambda: SharpnessAware(sharpness=SAM(rho=-1.0)), "rho must be a number of at least 0"),
        (lambda: SharpnessAware(sharpness=ASAM(eta=-0.1)), "eta must be a number of at least 0"),
        (lambda: SharpnessAware(targets=Targets(include=("nowhere",))), "matches no module"),
        (lambda: SharpnessAware(targets=Targets(include=("net.drop",))), "no module of the network that has weights"),
        (lambda: SharpnessAware(network="net.head", targets=Targets(include=("net.stem",))), "has weights"),
        (lambda: SharpnessAware(window=Window(begin=9, unit="epoch")), "ends"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_changes(make, reason):
    module = Module()
    before = copy.deepcopy(dict(module.state_dict()))
    with pytest.raises(ValueError, match=reason):
        fit(module, make())
    assert same(before, dict(module.state_dict()))


def test_frozen_weights_do_not_move_and_if_all_are_it_is_refused():
    class FrozenStem(Written):
        names = ("norm", "head")

    module, by_hand = Module(), FrozenStem()
    for each in (module, by_hand):
        each.net.stem.requires_grad_(False)
    assert same(fit(module, SharpnessAware()), fit(by_hand))
    with pytest.raises(ValueError, match="no targeted weight is trained"):
        fit(module, SharpnessAware(targets=Targets(include=("net.stem",))))


def test_two_of_them_and_a_static_graph_are_refused():
    with pytest.raises(ValueError, match="weights that are moved twice: use one"):
        fit(Module(), SharpnessAware(name="one"), SharpnessAware(name="other"))
    callback = SharpnessAware()
    trainer = quiet(callback, strategy=DDPStrategy(static_graph=True))
    with pytest.raises(ValueError, match="static_graph=True counts on one"):
        callback.setup(trainer, Module(), "fit")  # a fit would leave a process group in this process


class Skips(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else {"loss": loss, "weight": self.net.head.bias.detach().clone()}


def test_what_a_step_returns_beside_its_loss_is_of_the_first_pass_and_a_step_without_loss_is_left():
    class Spy(Moves):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx != 1:
                assert torch.equal(outputs["weight"], self.before[-1])

    spy = Spy()
    found = fit(Skips(), SharpnessAware(), spy)
    assert len(spy.lengths) == 6

    class SkipsToo(Written):
        def training_step(self, batch, batch_idx):
            return (
                Module.training_step(self, batch, batch_idx) and None
                if batch_idx == 1
                else super().training_step(batch, batch_idx)
            )

    assert same(found, fit(SkipsToo()))


@pytest.mark.parametrize("kind", [Module, Manual])
@pytest.mark.parametrize("compiles", [False, True])
def test_evidence_of_pruning_is_that_of_the_first_pass(kind, compiles):
    def seen(*callbacks):
        torch._dynamo.reset()
        module, pruning = kind(), PruningScheduler(criterion=Wanda(), schedule=Constant(value=0.5), window=later)
        if compiles:
            module.net = torch.compile(module.net, backend="eager")
        module.optimizer = lambda weights, _: torch.optim.SGD(weights, 0.0)
        fit(module, pruning, *callbacks)
        return pruning.state_dict()["evidence"]

    later = Window(begin=0.9)
    assert same(seen(), seen(SharpnessAware()))


def test_what_validation_leaves_in_the_module_stays_as_it_is():
    class Validating(Module):
        def __init__(self):
            super().__init__()
            self.validated, self.last = MeanMetric(), torch.zeros(())
            self.net.register_buffer("seen_last", torch.zeros(()))

        def validation_step(self, batch, batch_idx):
            self.last = self.net.seen_last = F.cross_entropy(self(batch[0]), batch[1])
            self.validated.update(self.last)

    module, spy = Validating(), Moves()
    quiet().validate(module, data(), verbose=False)  # in inference mode
    quiet(SharpnessAware(), spy, max_epochs=2, num_sanity_val_steps=0).fit(module, data(), data())
    assert len(spy.lengths) == 8
    assert module.validated.update_count == 12
    assert module.last == module.net.seen_last


def test_a_module_that_is_compiled_as_a_whole_is_trained_alike():
    class Quiet(Module):
        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

    torch._dynamo.reset()
    module = Quiet()
    compiled = torch.compile(module, backend="eager")
    fit(compiled, SharpnessAware())
    for name, value in fit(Quiet(), SharpnessAware()).items():
        torch.testing.assert_close(dict(module.state_dict())[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_channels_that_are_removed_while_it_trains_are_gone_in_both_passes(order):
    def cut(*others):
        structure, window = Channel(shrink="update"), Window(begin=3, end=4, unit="step")
        pruning = PruningScheduler(structure=structure, schedule=Constant(value=0.5), window=window)
        module = Module()
        module.example_input_array = torch.zeros(2, 1, 5, 5)
        return module, fit(module, *[pruning, *others][::order])

    module, found = cut(SharpnessAware())
    assert module.net.stem.out_channels == module.net.norm.num_features == 3
    assert all(value.isfinite().all() for value in found.values())
    _, plain = cut()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in plain.items()}
    assert not torch.equal(found["net.stem.weight"], plain["net.stem.weight"])


def test_an_optimizer_that_calls_its_closure_several_times_takes_two_passes_each_time():
    class Several(Module):
        def training_step(self, batch, batch_idx):
            runs.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), 1e-2, max_iter=3, history_size=2)

    ends = []
    for callbacks in ([], [SharpnessAware()]):
        runs = []
        ends.append(fit(Several(), *callbacks, max_epochs=1))
        assert len(runs) == (12 if not callbacks else 24)
    assert not same(*ends)
    assert all(value.isfinite().all() for value in ends[1].values())
