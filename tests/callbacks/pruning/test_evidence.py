"""What a criterion is shown, held to a training loop written by hand."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.errors import TapError
from lightning_optim.pruning import (
    BatchNormScale,
    Channel,
    Criterion,
    Evidence,
    Magnitude,
    Movement,
    Neuron,
    Statistic,
    Taylor,
    Wanda,
)
from lightning_optim.schedule import Constant
from support import quiet, run_script

STEP_SIZE, STEPS = 0.1, 3


def product(weight, gradient):
    return weight * gradient


PRODUCT = Statistic(name="product", of=Evidence.GRADIENT, term=product)
ENERGY = Statistic(name="energy", of=Evidence.INPUT, term=torch.square)
ACTIVITY = Statistic(name="activity", of=Evidence.OUTPUT, term=torch.abs)


@dataclass(frozen=True, kw_only=True)
class Record(Criterion):
    """Scores as magnitude does, and keeps what it was shown."""

    wants: tuple = ()
    shown: list = field(default_factory=list, repr=False)

    @property
    def needs(self):
        return frozenset(self.wants)

    def __call__(self, seen):
        for need in self.wants:
            if isinstance(need, Statistic):
                seen.mean(need)
        self.shown.append(seen)
        return seen.weight.abs()

    def of(self, name):
        return next(seen for seen in reversed(self.shown) if seen.name == name)


class Two(LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), STEP_SIZE)


class Alternating(Two):
    """The first layer is trained for one loss and the second for another, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def losses(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1]), self.net(batch[0]).abs().mean()

    def training_step(self, batch, batch_idx):
        for optimizer, turn in zip(self.optimizers(), (0, 1), strict=True):
            optimizer.zero_grad()
            self.manual_backward(self.losses(batch)[turn])
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[place].parameters(), STEP_SIZE) for place in (0, 2)]


def batches(number):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 6, 4, generator=generator)[:number], torch.randn(8, 6, 3, generator=generator)[:number]


def run(module, callback, number, **settings):
    data = DataLoader(TensorDataset(*(part.flatten(0, 1) for part in batches(number))), 6)
    quiet(callback, **{"max_epochs": 1} | settings).fit(module, data)


def scheduler(criterion, structure=None):
    return PruningScheduler(
        schedule=Constant(value=0.5),
        criterion=criterion,
        structure=structure,
        window=Window(begin=STEPS, unit="step"),
    )


def fit(module, criterion, batches_a_step=1, structure=None, **settings):
    """Fit with one pruning step, after ``STEPS`` steps of the optimizers."""
    callback = scheduler(criterion, structure)
    run(module, callback, (STEPS + 1) * batches_a_step, **settings)
    return callback


def by_hand(module, batches_a_step=1, clip=None):
    """Weights and gradients before each of the steps, of plain gradient descent."""
    found = {"net.0": [], "net.2": []}
    inputs, answers = batches(STEPS * batches_a_step)
    for step in range(STEPS):
        module.zero_grad()
        for batch in range(step * batches_a_step, (step + 1) * batches_a_step):
            (F.mse_loss(module.net(inputs[batch]), answers[batch]) / batches_a_step).backward()
        for name, pairs in found.items():
            weight = module.get_submodule(name).weight
            pairs.append((weight.detach().clone(), weight.grad.clone()))
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        for parameter in module.parameters():
            parameter.data -= STEP_SIZE * parameter.grad
    return found


def mean_product(pairs):
    return sum(weight * gradient for weight, gradient in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("settings", "batches_a_step", "clip"),
    [({}, 1, None), ({"accumulate_grad_batches": 2}, 2, None), ({"gradient_clip_val": 0.05}, 1, 0.05)],
    ids=["plain", "accumulated", "clipped"],
)
def test_gradients_are_those_of_whole_steps_before_clipping(settings, batches_a_step, clip):
    criterion = Record(wants=(PRODUCT,))
    fit(Two(), criterion, batches_a_step, **settings)
    for name, pairs in by_hand(Two(), batches_a_step, clip).items():
        seen = criterion.of(f"{name.removeprefix('net.')}.weight")
        assert seen.counts[PRODUCT] == STEPS
        torch.testing.assert_close(seen.mean(PRODUCT), mean_product(pairs), rtol=1e-4, atol=1e-7)


def test_half_precision_gradients_are_summed_in_full():
    criterion = Record(wants=(PRODUCT,))
    fit(Two(), criterion, precision="bf16-true")
    assert criterion.of("0.weight").mean(PRODUCT).dtype == torch.float32
    expected = mean_product(by_hand(Two())["net.0"])
    torch.testing.assert_close(criterion.of("0.weight").mean(PRODUCT), expected, rtol=0.2, atol=0.02)


def test_each_optimizer_shows_the_gradients_of_its_own_weights():
    criterion, module = Record(wants=(PRODUCT,)), Alternating()
    fit(module, criterion)
    twin = Alternating()
    expected = {0: [], 2: []}
    for batch in zip(*batches(STEPS), strict=True):
        for place, turn in ((0, 0), (2, 1)):
            twin.zero_grad()
            twin.losses(batch)[turn].backward()
            weight = twin.net[place].weight
            expected[place].append((weight.detach().clone(), weight.grad.clone()))
            for parameter in twin.net[place].parameters():
                parameter.data -= STEP_SIZE * parameter.grad
    for place, pairs in expected.items():
        seen = criterion.of(f"{place}.weight")
        assert seen.counts[PRODUCT] == STEPS
        torch.testing.assert_close(seen.mean(PRODUCT), mean_product(pairs), rtol=1e-4, atol=1e-7)


class Open(Two):
    """Shows what goes between its layers."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def training_step(self, batch, batch_idx):
        first = F.linear(batch[0], self.net[0].weight, self.net[0].bias)
        last = F.linear(first.tanh(), self.net[2].weight, self.net[2].bias)
        self.shown.append([value.detach() for value in (batch[0], first, first.tanh(), last)])
        return super().training_step(batch, batch_idx)


def test_inputs_and_outputs_are_those_of_the_layer():
    criterion, module = Record(wants=(ENERGY, ACTIVITY)), Open()
    fit(module, criterion)
    values = [torch.cat(parts) for parts in zip(*module.shown[:STEPS], strict=True)]
    for name, inputs, outputs in (("0.weight", *values[:2]), ("2.weight", *values[2:])):
        torch.testing.assert_close(criterion.of(name).mean(ENERGY), inputs.square().mean(0))
        torch.testing.assert_close(criterion.of(name).mean(ACTIVITY), outputs.abs().mean(0))


def test_channels_are_shown_as_the_next_layer_reads_them():
    criterion, module = Record(wants=(ENERGY, ACTIVITY)), Open()
    fit(module, criterion, structure=Channel(shrink="never"))
    inputs, _, hidden, _ = (torch.cat(parts) for parts in zip(*module.shown[:STEPS], strict=True))
    torch.testing.assert_close(criterion.of("0.weight").mean(ENERGY), inputs.square().mean(0))
    torch.testing.assert_close(criterion.of("0.weight").mean(ACTIVITY), hidden.abs().mean(0))


class Overflowing(Two):
    """The gradients of the second batch are beyond any range: the scaler skips that step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.inf if batch_idx == 1 else loss


def test_a_step_that_the_gradient_scaler_skips_is_not_counted():
    criterion = Record(wants=(PRODUCT,))
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
    run(Overflowing(), scheduler(criterion), STEPS + 1, plugins=[scaled])
    seen = criterion.of("0.weight")
    assert seen.counts[PRODUCT] == STEPS - 1
    assert seen.mean(PRODUCT).isfinite().all()
    first = by_hand(Two())["net.0"][0]
    assert seen.mean(PRODUCT).abs().max() < 10 * mean_product([first]).abs().max()  # unscaled


def test_nothing_is_gathered_that_is_not_needed():
    callback = fit(Two(), Record())
    assert callback.state_dict()["evidence"] == {"shared": {}, "ranks": [{}], "norms": None}


class Normed(Two):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def test_the_norm_is_the_one_that_reads_the_layer():
    criterion, module = Record(wants=(Evidence.MODULE,)), Normed()
    fit(module, criterion)
    assert criterion.of("0.weight").norm is module.net[1]
    assert criterion.of("3.weight").norm is None


def test_channels_are_pruned_by_the_scale_of_their_norm():
    module = Normed()
    module.net[1].weight.data = torch.tensor([5.0, 0.1, 4.0, 0.2, 3.0])
    plain = {name: value.clone() for name, value in module.net[0].named_parameters()}
    fit(module, BatchNormScale(), structure=Channel(), gradient_clip_val=1e-9)
    kept = torch.tensor([0, 2, 4])
    torch.testing.assert_close(module.net[0].weight, plain["weight"][kept], rtol=1e-4, atol=1e-6)


def test_movement_goes_on_over_a_cut():
    sums, products = [], []

    class Watched(Two):
        def on_train_batch_start(self, batch, batch_idx):
            totals = callback.state_dict()["evidence"]["shared"]["movement"]["totals"]
            sums.append({name: total.clone() for name, total in totals.items()})

        def on_before_optimizer_step(self, optimizer):
            products.append((self.net[0].weight * self.net[0].weight.grad).detach())

    callback = PruningScheduler(
        schedule=Constant(value=0.4),
        criterion=Movement(),
        structure=Channel(),
        window=Window(begin=2, unit="step"),
        targets=Targets(include=["net.0"]),
    )
    run(Watched(), callback, 4)
    kept = callback.cut["0.weight"][0][1]
    assert len(kept) == 3
    torch.testing.assert_close(sums[2]["0.weight"], -(products[0] + products[1])[kept])
    torch.testing.assert_close(sums[3]["0.weight"], sums[2]["0.weight"] - products[2])


@pytest.mark.parametrize(
    ("criterion", "structure", "message"),
    [
        (Wanda(), Channel(), "set within='layer'"),
        (Wanda(), Neuron(), "set within='layer'"),
        (BatchNormScale(), None, "scores need batch norms, but the network has none"),
    ],
)
def test_what_a_criterion_cannot_score_is_refused_before_anything_happens(criterion, structure, message):
    module = Two()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(module, criterion, structure=structure)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


class Untrained(Two):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), STEP_SIZE)


class Unwrapped(Two):
    """Steps an optimizer that Lightning does not see."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_a_layer_that_no_optimizer_trains_is_refused_where_gradients_are_needed():
    with pytest.raises(ValueError, match="'Taylor' scores need gradients, but no optimizer trains '2'"):
        fit(Untrained(), Taylor())
    assert fit(Untrained(), Magnitude()).target_sparsity == 0.5


def test_gradients_that_never_come_are_told_after_a_whole_epoch():
    with pytest.raises(TapError, match="had none in a whole epoch"):
        fit(Unwrapped(), Taylor(), max_epochs=4)


class Diverging(Two):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if batch_idx == 1 else loss


def test_scores_that_are_not_numbers_are_named():
    with pytest.raises(ValueError, match=r"scores of 0\.weight and of 1 other layers are NaN"):
        fit(Diverging(), Taylor())


def test_a_checkpoint_in_the_middle_of_a_window_holds_what_each_rank_saw(tmp_path):
    done = run_script(Path(__file__).with_name("two_ranks_resume.py"), tmp_path, cwd=tmp_path)
    assert done.stdout.count("resumed equal") == 2, done.stdout
