"""Penalties: weights equal to those of a module that has them written into its step."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_optim.functional as LF
from lightning_optim import PenaltyRegularizer, PruningScheduler, Targets, Window
from lightning_optim.errors import CaptureError, TapError, TargetError
from lightning_optim.pruning import Channel
from lightning_optim.regularization import L1, L2, GroupLasso, Jacobian, Orthogonal, Slimming, SpectralNorm
from lightning_optim.regularization.draws import generator_for
from lightning_optim.schedule import Linear
from support import quiet, run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.mix = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(x + self.mix(x)).mean((2, 3)))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def penalty(self):
        return 0.0

    def own_loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1]) + self.penalty()

    def training_step(self, batch, batch_idx):
        return self.own_loss(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.0)


class Manual(Module):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.own_loss(batch))
        optimizer.step()


def matrices(net):
    return [net.stem.weight, net.mix.weight, net.head.weight]


def l1(net):
    return sum(weight.abs().sum() for weight in matrices(net))


def l2(net):
    return sum(0.5 * (weight**2).sum() for weight in matrices(net))


def slimming(net):
    return net.norm.weight.abs().sum()


def orthogonal(net):
    total = 0.0
    with torch.autocast("cpu", enabled=False):
        for weight in matrices(net):
            rows = weight.flatten(1)
            rows = rows if len(rows) <= rows.shape[1] else rows.T
            total = total + ((rows @ rows.T - torch.eye(len(rows))) ** 2).sum()
    return total


def spectral_norm(net):
    with torch.autocast("cpu", enabled=False):
        return sum(0.5 * torch.linalg.svdvals(weight.flatten(1))[0] ** 2 for weight in matrices(net))


def group_lasso(net):
    """The sum ties stem and mix: one group, of what makes, shifts, scales and reads each channel."""
    squares = (net.stem.weight**2).sum((1, 2, 3)) + net.stem.bias**2 + net.norm.weight**2 + net.norm.bias**2
    squares = squares + (net.mix.weight**2).sum((1, 2, 3)) + (net.mix.weight**2).sum((0, 2, 3))
    squares = squares + (net.head.weight**2).sum(0)
    return (9 + 1 + 1 + 1 + 54 + 54 + 4) ** 0.5 * squares.sqrt().sum()


def spectral_in_code(net):
    with torch.autocast("cpu", enabled=False):
        return sum(LF.spectral_penalty(weight.flatten(1), 20) for weight in matrices(net))


def group_lasso_in_code(net):
    each = torch.arange(6).unsqueeze(1)
    places = [(net.stem.weight, 0), (net.stem.bias, 0), (net.norm.weight, 0), (net.norm.bias, 0)]
    places += [(net.mix.weight, 0), (net.mix.weight, 1), (net.head.weight, 1)]
    return LF.group_lasso_penalty(LF.sum_of_squares((weight, dim, each) for weight, dim in places), 124)


EXACT = {
    "l1": (L1(), l1),
    "l2": (L2(), l2),
    "slimming": (Slimming(), slimming),
    "orthogonal": (Orthogonal(), orthogonal),
    "spectral_norm": (SpectralNorm(), spectral_in_code),
    "group_lasso": (GroupLasso(), group_lasso_in_code),
}
CLOSE = {"spectral_norm": (SpectralNorm(iterations=400), spectral_norm), "group_lasso": (GroupLasso(), group_lasso)}
SETTINGS = [{"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}]


def by_hand(kind, penalty, strength=0.01):
    return type("ByHand", (kind,), {"penalty": lambda self: strength * penalty(self.net)})()


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 1, 6, 6, generator=generator), torch.randint(0, 4, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def fit(module, *callbacks, max_epochs=2, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return module


def regularizer(penalties, **settings):
    return PenaltyRegularizer(penalties=penalties, **{"strength": 0.01} | settings)


@pytest.mark.parametrize("kind", [Module, Manual])
@pytest.mark.parametrize("key", EXACT)
def test_weights_equal_those_of_a_penalty_written_into_the_step(key, kind):
    penalty, written = EXACT[key]
    expected = fit(by_hand(kind, written)).state_dict()
    assert same(fit(kind(), regularizer(penalty)).state_dict(), expected)
    assert not same(fit(kind()).state_dict(), expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_they_do_so_under_the_trainers_settings(settings):
    assert same(fit(Module(), all_at_once(), **settings).state_dict(), fit(AllByHand(), **settings).state_dict())


@pytest.mark.parametrize("key", CLOSE)
def test_weights_are_close_to_those_of_an_independent_form(key):
    class Plain(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    penalty, written = CLOSE[key]
    exact = {"precision": "64-true"}
    added, reference = fit(Plain(), regularizer(penalty), **exact), fit(by_hand(Plain, written), **exact)
    for name, weight in reference.state_dict().items():
        torch.testing.assert_close(added.state_dict()[name], weight, rtol=1e-6, atol=1e-9)
    assert not same(added.state_dict(), fit(Plain(), **exact).state_dict())


class Decayed(Module):
    """Weight decay by group after each step, with the rate that the step had."""

    strengths = (0.5, 0.25)

    def on_train_start(self):
        def decay(optimizer, *_):
            rate = optimizer.param_groups[0]["lr"]
            with torch.no_grad():
                for weight in (self.net.stem.weight, self.net.mix.weight):
                    weight.mul_(1.0 - rate * self.strengths[0])
                self.net.head.weight.mul_(1.0 - rate * self.strengths[1])

        self.trainer.optimizers[0].register_step_post_hook(decay)


class ManualDecayed(Decayed):
    automatic_optimization = False
    training_step = Manual.training_step


class AllByHand(Module):
    def own_loss(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        for _, written in EXACT.values():
            loss = loss + 0.01 * written(self.net)
        return loss


def all_at_once():
    return regularizer({key: penalty for key, (penalty, _) in EXACT.items()})


def decay(**settings):
    return regularizer(
        {"convolutions": L2(), "head": L2()},
        **{
            "strength": {"convolutions": 0.5, "head": 0.25},
            "targets": {"convolutions": Targets(types=("Conv2d",)), "head": Targets(include=("net.head",))},
            "decoupled": ("convolutions", "head"),
        }
        | settings,
    )


@pytest.mark.parametrize("kinds", [(Module, Decayed), (Manual, ManualDecayed)])
def test_decoupled_decay_by_group_equals_a_decay_after_the_step(kinds):
    plain, written = kinds
    settings = {} if plain is Manual else {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    expected = fit(written(), **settings).state_dict()
    assert same(fit(plain(), decay(), **settings).state_dict(), expected)
    assert not same(fit(plain(), **settings).state_dict(), expected)


def test_decoupled_decay_is_that_of_adamw_but_for_the_order():
    class AdamW(Module):
        def configure_optimizers(self):
            weights = [self.net.stem.weight, self.net.mix.weight, self.net.head.weight]
            rest = [each for each in self.parameters() if not any(each is weight for weight in weights)]
            groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
            return torch.optim.AdamW(groups, 1e-3)

    class Adam(Module):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    exact = {
        "precision": "64-true"
    }  # a bias before a norm has no gradient but rounding, which Adam makes as large as any
    added = fit(Adam(), regularizer(L2(), strength=0.1, decoupled=("l2",)), **exact)
    for name, weight in fit(AdamW(), **exact).state_dict().items():
        torch.testing.assert_close(added.state_dict()[name], weight, rtol=1e-5, atol=1e-5)


def test_strength_follows_its_schedule_over_the_window():
    class Scheduled(Module):
        def penalty(self):
            step = self.trainer.global_step
            return 0.0 if step < 2 else min(1.0, (step - 2) / 4) * 0.1 * l1(self.net)

    window = Window(begin=2, end=6, unit="step")
    added = fit(Module(), regularizer(L1(), strength=Linear(start=0.0, end=0.1), window=window))
    assert same(added.state_dict(), fit(Scheduled()).state_dict())


def test_decoupled_decay_waits_for_its_window():
    class Late(Decayed):
        def on_train_batch_start(self, batch, batch_idx):
            self.strengths = (0.5, 0.25) if self.trainer.global_step >= 3 else (0.0, 0.0)

    added = fit(Module(), decay(window=Window(begin=3, unit="step")))
    assert same(added.state_dict(), fit(Late()).state_dict())


def test_all_parameters_may_decay_and_a_shared_one_does_so_once():
    class Shared(Module):
        def __init__(self):
            super().__init__()
            self.net.mix.weight = nn.Parameter(torch.randn(6, 6, 3, 3, generator=torch.Generator().manual_seed(3)))
            self.net.again = nn.Conv2d(6, 6, 3, bias=False)
            self.net.again.weight = self.net.mix.weight

    def everything(net):
        return sum(0.5 * (weight**2).sum() for weight in net.parameters())

    assert same(
        fit(Shared(), regularizer(L2(parameters="all"))).state_dict(), fit(by_hand(Shared, everything)).state_dict()
    )


class Logged(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def test_each_penalty_is_logged_by_key_without_its_strength():
    module, seen = Module(), Logged()
    first = (float(l1(module.net)), float(l2(module.net)))
    fit(module, regularizer({"a": L1(), "b": L2()}, decoupled=("b",), name="mine"), seen)
    assert seen.seen[0]["regularization/mine/a"] == pytest.approx(first[0])
    assert seen.seen[0]["regularization/mine/b"] == pytest.approx(first[1])


def test_a_resumed_fit_is_bit_equal(tmp_path):
    def make():
        penalties = {"lasso": GroupLasso(), "decay": L2(), "spectral": SpectralNorm()}
        strengths = {"lasso": Linear(start=0.0, end=0.1), "decay": 0.5, "spectral": 0.1}
        return regularizer(penalties, strength=strengths, decoupled=("decay",))

    whole = fit(Module(), make())

    class Save(Callback):
        def on_train_epoch_end(self, trainer, *_):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    assert same(fit(Module(), make(), Save()).state_dict(), whole.state_dict())
    assert same(fit(Module(), make(), ckpt_path=tmp_path / "half.ckpt").state_dict(), whole.state_dict())


def test_group_lasso_follows_a_shrink_in_the_middle_of_a_fit():
    module = Module()
    prune = PruningScheduler(
        structure=Channel(shrink="update"), schedule=Linear(start=0.0, end=0.5), window=Window(begin=0.2, end=0.8)
    )
    fit(module, prune, regularizer(GroupLasso()))
    assert module.net.stem.out_channels == 3


@pytest.mark.parametrize(
    ("penalty", "settings", "says"),
    [
        (L1(), {"targets": Targets(include=("net.steam",))}, "'net.steam' matches no module; did you mean 'net.stem'"),
        (L1(), {"targets": Targets(include=("net",))}, "'net' matches no module that has a weight.*'net.\\*'"),
        (L1(), {"targets": Targets(include=("net.norm",))}, "'net.norm' matches no module that has a weight for L1"),
        (Slimming(), {"targets": Targets(include=("net.stem",))}, "'net.stem' matches 1 modules, none of them a Batch"),
        (L1(), {"network": "nowhere"}, "no module is named 'nowhere'"),
    ],
)
def test_targets_that_match_nothing_are_refused_before_anything_changes(penalty, settings, says):
    refused(Module(), regularizer(penalty, **settings), says)


def refused(module, callback, says, error=TargetError, *, trains=True):
    """Nothing has changed; where a first forward pass was needed, no parameter has."""
    state = module.state_dict if trains else lambda: dict(module.named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in state().items()}
    with pytest.raises(error, match=says):
        fit(module, callback)
    assert same(before, dict(state()))
    assert not {"training_step", "manual_backward"} & set(vars(module))


def test_weights_that_nothing_moves_are_refused():
    frozen, apart, plain, computed = Module(), Module(), Module(), Module()
    frozen.net.stem.requires_grad_(False)
    refused(frozen, regularizer(L1()), "'l1' on 'net.stem.weight' would do nothing, since that is frozen")
    fit(frozen, regularizer(L1(), targets=Targets(exclude=("net.stem",))), max_epochs=1)
    apart.configure_optimizers = lambda: torch.optim.SGD(apart.net.head.parameters(), 0.1)
    refused(apart, regularizer(L2()), "'l2' on 'net.stem.weight' would do nothing, since that is in no optimizer")
    plain.net.norm = nn.BatchNorm2d(6, affine=False)
    refused(
        plain,
        regularizer(Slimming()),
        "'slimming' needs a parameter 'weight' of 'net.norm' .* which has none of its own",
    )
    nn.utils.parametrizations.spectral_norm(computed.net.mix)
    refused(computed, regularizer(Orthogonal()), "of 'net.mix' .* which has none of its own .it may be computed")


def test_channels_that_nothing_is_known_of_are_refused():
    shown, hidden = Module(), Module()
    shown.example_input_array = torch.zeros(2, 1, 6, 6)
    head = regularizer(GroupLasso(), targets=Targets(include=("net.head",)))
    refused(shown, head, "none of the 1 targeted layers has channels that can be removed")
    refused(hidden, head, "none of the 1 targeted layers", trains=False)


def test_a_network_that_cannot_be_captured_or_is_not_called_is_refused_in_the_first_step():
    class Odd(Net):
        def forward(self, x):
            return super().forward(x) if float(x.detach().sum()) > -1e9 else x

    module, apart = Module(), Module()
    module.net = Odd()
    refused(module, regularizer(GroupLasso()), "torch.export cannot capture Odd", CaptureError, trains=False)
    apart.spare = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    says = "no forward pass went through 'spare'"
    refused(apart, regularizer(GroupLasso(), network="spare"), says, TapError, trains=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"penalties": {}}, "at least one penalty"),
        ({"strength": -1.0}, "strength of 'l1' must be a number of at least 0"),
        ({"strength": 0.0}, "every penalty has strength 0"),
        ({"strength": {"l2": 1.0}}, r"strength names \['l2'\], but the penalties are \['l1'\]"),
        ({"targets": {"l2": Targets()}}, r"targets names \['l2'\]"),
        ({"decoupled": ("l1",)}, "'l1', a L1: only L2 can be applied after the optimizer's step"),
        ({"decoupled": ("l2",)}, "decoupled names 'l2', but"),
        ({"backward_index": -1}, "backward_index must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        PenaltyRegularizer(**{"penalties": L1(), "strength": 0.1} | settings)


@pytest.mark.slow
def test_two_ranks_end_as_a_penalty_written_into_the_step(tmp_path):
    run_script(Path(__file__).with_name("penalties_on_two_ranks.py"), cwd=tmp_path)


class JacobianByHand(Module):
    """The network's derivative along random directions, which are drawn as the callback draws them."""

    seed = 3

    def own_loss(self, batch):
        x = batch[0].clone().requires_grad_()
        logits = self.net(x)
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        vectors = torch.randn(logits.shape, generator=generator_for(self.seed, number, self.global_rank))
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        (gradient,) = torch.autograd.grad(logits, x, unit, create_graph=True)
        norm = 0.5 * logits.shape[1] * (gradient**2).sum() / len(x)
        return F.cross_entropy(logits, batch[1]) + 0.1 * norm


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_jacobian_penalty_equals_one_that_is_written_into_the_step(settings):
    expected = fit(JacobianByHand(), **settings).state_dict()
    assert same(fit(Module(), jacobian(), **settings).state_dict(), expected)
    assert not same(fit(Module(), **settings).state_dict(), expected)


def jacobian(**settings):
    return regularizer(Jacobian(seed=3), **{"strength": 0.1} | settings)


def test_jacobian_penalty_equals_so_where_the_module_is_the_network_and_leaves_no_hook():
    class Root(Module):
        def forward(self, x):
            return self.net(x)

        def own_loss(self, batch):
            return F.cross_entropy(self(batch[0]), batch[1])

    module = fit(Root(), jacobian(network=""))
    assert same(module.state_dict(), fit(JacobianByHand()).state_dict())
    assert not module.net._forward_pre_hooks
    assert "forward" not in vars(module)


def test_jacobian_penalty_needs_inputs_and_one_output():
    class Tokens(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))

        def own_loss(self, batch):
            return F.cross_entropy(self.net(batch[1]), batch[1])

    refused(Tokens(), jacobian(), "an input in floating point and one output: here 0 inputs and 1", TapError)
    compiled = Module()
    compiled.net = torch.compile(compiled.net, backend="eager")
    refused(compiled, jacobian(), "train it uncompiled")
    with pytest.raises(ValueError, match="targets names 'jacobian', which looks at the whole network"):
        jacobian(targets={"jacobian": Targets()})
