import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import NASSupernet, Targets
from lightning_optim.errors import TapError
from lightning_optim.nas import FairNAS, OperationChoice, ProgressiveShrinking, Sandwich, UniformSampling
from support import quiet, same


class User(LightningModule):
    is_checkpointed = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        self.example_input_array = torch.zeros(4, 6)

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False) if self.is_checkpointed else self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def space():
    candidates = {"skip": nn.Identity, "wide": lambda: nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 6))}
    return {"mix": OperationChoice(targets=Targets(include=["net.0", "net.2"]), candidates=candidates)}


def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8)


def fit(sampler, module=None, **settings):
    module, callback = module or User(), NASSupernet(space=space(), sampler=sampler, search_at="call")
    made = quiet(callback, max_epochs=1, **settings)
    made.fit(module, loader())
    return module, callback, made


def by_hand(sampler, soft=None, group=1):
    """Train as the callback does: a loop over paths, one backward, one step."""
    module, callback = User(), NASSupernet(space=space(), sampler=sampler, search_at="call")
    supernet = callback.convert(module)
    state, optimizer = sampler.start(supernet, 0), module.configure_optimizers()
    for number, (x, y) in enumerate(loader()):
        losses, first = [], None
        for path in state.paths(number // group, number / 6):
            supernet.activate(path.architecture)
            logits = module.net(x)
            if first is None or soft is None:
                losses.append(F.cross_entropy(logits, y))
            else:
                losses.append(F.cross_entropy(logits / soft, (first.detach() / soft).softmax(1)) * soft**2)
            first = logits if first is None else first
        (torch.stack(losses).mean() / group).backward()
        if number % group == group - 1:
            optimizer.step()
            optimizer.zero_grad()
    return module


@pytest.mark.parametrize(
    ("sampler", "soft"),
    [(FairNAS(), None), (Sandwich(random_paths=1, temperature=None), None), (Sandwich(temperature=2.0), 2.0),
     (UniformSampling(), None), (ProgressiveShrinking(opens={"*": 0.5}), None)],
)  # fmt: skip
@pytest.mark.parametrize("group", [1, 2])
def test_a_fit_is_the_loop_over_the_paths_of_each_step(sampler, soft, group):
    module, callback, _ = fit(sampler, accumulate_grad_batches=group)
    expected = by_hand(sampler, soft, group)
    for (name, one), other in zip(module.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=1e-5, atol=1e-6)
    passes = sum(callback.counts["net.0:operation"].values())
    assert passes == 6 * len(sampler.start(callback.supernet, 0).paths(0, 0.0))


def test_uniform_sampling_is_the_default_and_trains_bit_for_bit_alike():
    ends = [dict(fit(sampler)[0].state_dict()) for sampler in (None, UniformSampling())]
    assert same(*ends)
    assert same(ends[0], dict(by_hand(UniformSampling()).state_dict()))


def test_what_a_checkpoint_computes_again_runs_on_its_own_path():
    module = User()
    module.is_checkpointed = True
    plain, checked = fit(FairNAS())[0], fit(FairNAS(), module)[0]
    assert same(dict(plain.state_dict()), dict(checked.state_dict()))


class Counts(User):
    """Counts what it logs, and what reaches the trainer's log."""

    def __init__(self):
        super().__init__()
        self.values = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.values.append(loss.item())
        return loss


def test_the_first_path_alone_is_logged():
    module, _, made = fit(FairNAS(), Counts())
    assert len(module.values) == 6 * 3
    assert float(made.callback_metrics["train/loss"]) == module.values[-3]


class Pairs(User):
    def __init__(self):
        super().__init__()

        class Two(nn.Sequential):
            def forward(self, x):
                return {"logits": super().forward(x)}

        self.net = Two(*self.net)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0])["logits"], batch[1])


def test_outputs_that_are_no_logits_are_refused_in_distillation():
    with pytest.raises(TapError, match=r"logits, classes in dimension 1, got a dict; set the sampler's temperature"):
        fit(Sandwich(), Pairs())
    fit(Sandwich(temperature=None), Pairs())


class Manual(User):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


def test_several_paths_are_refused_under_manual_optimization_and_one_is_not():
    module = Manual()
    before = copy.deepcopy(dict(module.named_parameters()))
    with pytest.raises(ValueError, match=r"FairNAS trains several paths .* under manual optimization"):
        fit(FairNAS(), module)
    assert all(torch.equal(value, module.get_parameter(name)) for name, value in before.items())
    fit(ProgressiveShrinking(opens={"*": 0.5}), Manual())


def test_a_fit_without_an_end_is_refused_where_paths_depend_on_it():
    module = User()
    callback = NASSupernet(space=space(), sampler=ProgressiveShrinking(opens={"*": 0.5}), search_at="call")
    with pytest.raises(ValueError, match=r"a fit with one|number of its batches"):
        quiet(callback, max_epochs=-1).fit(module, loader())
