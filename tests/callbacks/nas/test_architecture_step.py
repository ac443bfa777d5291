import copy
import itertools
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import NASSupernet, Targets
from lightning_optim.callbacks.nas.held_out import split_loader
from lightning_optim.nas import (
    DARTS,
    GDAS,
    PCDARTS,
    ArchitectureSteps,
    ExpectedCost,
    FairNAS,
    OperationChoice,
    ProxylessNAS,
    Selection,
)
from lightning_optim.nas.forward.mixture import mix
from lightning_optim.schedule import Constant
from support import quiet, run_script, same

STEPS = ArchitectureSteps(learning_rate=0.1, weight_decay=0.0)
SAMPLERS = [
    DARTS(steps=STEPS, cost=ExpectedCost(target=30.0)),
    GDAS(steps=STEPS),
    GDAS(steps=STEPS, auxiliary_skip=Constant(value=0.5)),
    PCDARTS(steps=STEPS, channel_share=0.5),
    ProxylessNAS(steps=STEPS),
]


class User(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.example_input_array = torch.zeros(4, 6)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def space():
    candidates = {"skip": nn.Identity, "wide": lambda: nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 6))}
    return {"mix": OperationChoice(targets=Targets(include=["net.0", "net.2"]), candidates=candidates)}


def loader(count=96):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8)


def searcher(sampler, **settings):
    return NASSupernet(**{"space": space(), "sampler": sampler, "search_at": "call"} | settings)


def fit(sampler, module=None, *callbacks, **settings):
    module, callback = module or User(), searcher(sampler)
    made = quiet(callback, *callbacks, **{"max_epochs": 1} | settings)
    made.fit(module, loader())
    return module, callback, made


def learned(callback):
    return callback.state_dict()["training"]["learned"]["values"]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda each: type(each).__name__)
def test_a_fit_is_the_loop_of_both_kinds_of_steps(sampler):
    module, callback, _ = fit(sampler)
    other, by_hand = User(), searcher(sampler)
    supernet = by_hand.convert(other)
    state, optimizer = sampler.start(supernet, 0), other.configure_optimizers()
    values = list(state.parameters.values.values())
    adam = torch.optim.Adam(values, 0.1, betas=sampler.betas)
    kept, held = split_loader(loader(), 0.5, 0, 0, 1)
    for step, (x, y) in enumerate(kept):
        progress, buffers = step / 6, copy.deepcopy(dict(other.named_buffers()))
        before = {name: value.detach().clone() for name, value in state.parameters.values.items()}
        path = state.architecture_path(step, progress)
        supernet.activate(path.architecture)
        mix(other, path.mixtures)
        held_x, held_y = held.batch(step)
        term = state.cost_term()
        loss = F.cross_entropy(other.net(held_x), held_y) + (0.0 if term is None else term)
        adam.zero_grad()
        for value, gradient in zip(values, torch.autograd.grad(loss, values), strict=True):
            value.grad = gradient
        adam.step()
        state.settle(step, before)
        for name, buffer in other.named_buffers():
            buffer.copy_(buffers[name])
        (path,) = state.paths(step, progress)
        supernet.activate(path.architecture)
        mix(other, path.mixtures)
        optimizer.zero_grad()
        F.cross_entropy(other.net(x), y).backward()
        optimizer.step()
    for found, expected in zip(learned(callback), values, strict=True):
        torch.testing.assert_close(found, expected.detach())
        assert float(expected.detach().abs().max()) > 0.01
    for (name, found), expected in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_the_split_is_named(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(GDAS())
    assert "GDAS: 48 of 96 training samples, drawn with seed 0, are held out" in caplog.text


def test_the_users_checkpoint_has_no_key_of_them_and_their_pick_is_judged_first():
    sampler = DARTS(steps=STEPS)
    module, callback, made = fit(sampler)
    plain, other = User(), searcher(None)
    other.convert(plain)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert len(list(module.parameters())) == len(list(plain.parameters()))
    pick = {name: int(value.argmax()) for name, value in zip(callback.supernet.default, learned(callback), strict=True)}
    callback.selection = Selection(evaluations=1, recalibration_batches=0)
    result = callback.search(made, module, loader())
    assert result.evaluations[0].architecture == result.pick.architecture == pick


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
@pytest.mark.parametrize("sampler", [SAMPLERS[0], SAMPLERS[4]], ids=["darts", "proxyless"])
def test_it_trains_under_the_trainers_settings_and_one_step_precedes_each_optimizer_step(sampler, settings):
    taken = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            taken.append(copy.deepcopy(learned(callback)))

    module, callback = User(), searcher(sampler)
    quiet(callback, Watch(), max_epochs=1, **settings).fit(module, loader())
    changes = [not same(one, other) for one, other in itertools.pairwise(taken)]
    expected = [False, True, False, True, False] if "accumulate_grad_batches" in settings else [True] * 5
    assert changes == expected


def test_parameters_wait_for_the_end_of_the_warmup():
    sampler = GDAS(steps=ArchitectureSteps(warmup=0.5, learning_rate=0.1))
    callback = searcher(sampler)
    start = sampler.start(callback.convert(User()), 0).parameters.values
    _, short, _ = fit(sampler, None, Stop())
    assert all(torch.equal(one, other) for one, other in zip(learned(short), start.values(), strict=True))
    assert not torch.equal(learned(fit(sampler)[1])[0], start["net.0:operation"])


class Stop(Callback):
    """Ends the fit in its middle."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 2


class Manual(User):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


def test_manual_optimization_and_too_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"DARTS takes the loss of a training step .* under manual optimization"):
        fit(DARTS(), Manual())
    callback = searcher(DARTS())
    with pytest.raises(ValueError, match="10 are too few"):
        quiet(callback, max_epochs=1).fit(User(), loader(10))


@pytest.mark.parametrize("sampler", [None, FairNAS(), DARTS()], ids=lambda each: type(each).__name__)
def test_an_average_copied_before_candidates_were_added_is_refused_by_name(sampler):
    fit(sampler, None, EMAWeightAveraging(decay=0.5))
    with pytest.raises(ValueError, match="list NASSupernet before EMAWeightAveraging"):
        quiet(EMAWeightAveraging(decay=0.5), searcher(sampler), max_epochs=1).fit(User(), loader())


class Counts(User):
    """Draws random numbers in its step, counts in a buffer and notes what it logs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.drawn = []

    def training_step(self, batch, batch_idx):
        self.seen += 1
        self.drawn.append(float(torch.rand(())))
        return super().training_step(batch, batch_idx)


def test_architecture_steps_leave_random_numbers_and_buffers_of_the_fit_alone():
    module, plain = Counts(), Counts()
    torch.manual_seed(3)
    fit(GDAS(), module)
    torch.manual_seed(3)
    quiet(searcher(None), max_epochs=1).fit(plain, split_loader(loader(), 0.5, 0, 0, 1)[0])
    assert plain.drawn == module.drawn  # a list, and so put back, as the buffer is
    assert int(module.seen) == int(plain.seen) == 6


class Drift(Callback):
    """Lets one rank's parameters drift."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 1:
            callback = next(each for each in trainer.callbacks if isinstance(each, NASSupernet))
            with torch.no_grad():
                callback._training._learned._own.tensors[0][0] += 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("count", [5])
def test_two_ranks_learn_the_same_from_parts_of_their_own_and_a_drift_is_caught_within_a_step(tmp_path, count):
    said = run_script(Path(__file__).with_name("architecture_on_two_ranks.py"), count, cwd=tmp_path).stdout
    names = sorted(["GDAS", "FairNAS", "DARTS", "ProxylessNAS", "Sandwich"][:count])
    assert sorted(line for line in said.splitlines() if " rank " in line) == [
        f"{name} rank {rank} equal" for name in names for rank in (0, 1)
    ] + [f"drift rank {rank} caught before step 2" for rank in (0, 1)]
