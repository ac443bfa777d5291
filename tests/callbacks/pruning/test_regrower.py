import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.pruning import Channel, GradientRegrowth, RandomRegrowth
from lightning_optim.pruning.masks import unpack
from lightning_optim.pruning.regrow.base import decayed
from lightning_optim.schedule import Constant, Linear
from support import quiet, same

BATCHES, EVERY, END = 4, 2, 8
KINDS = {"random": RandomRegrowth(fraction=0.4), "gradient": GradientRegrowth(fraction=0.4)}
LAYERS = ("net.0.weight", "net.3.weight")


class Net(LightningModule):
    manual = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))

    def loss(self, batch_idx):
        generator = torch.Generator().manual_seed(100 * self.current_epoch + batch_idx)
        x = torch.randn(16, 12, generator=generator)
        return F.cross_entropy(self.net(x), x[:, :3].argmax(1))

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.loss(batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self):
        if self.automatic_optimization:
            return torch.optim.AdamW(self.net.parameters(), lr=0.01)
        return [torch.optim.AdamW(self.net[index].parameters(), lr=0.01) for index in (0, 3)]


class Steps(Callback):
    """Weights, gradients, moments and masks at each optimizer step: as placed, before or after the scheduler acts."""

    def __init__(self):
        self.weights, self.moments, self.masks = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = dict(pl_module.named_parameters())
        self.weights.append({name: (named[name].detach().clone(), named[name].grad.clone()) for name in LAYERS})
        self.moments.append(copy.deepcopy(dict(optimizer.state.get(pl_module.net[0].weight, {}))))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pruning = next(callback for callback in trainer.callbacks if isinstance(callback, PruningScheduler))
        kept = pruning.state_dict()["masks"]
        self.masks.append({name: unpack(entry["bits"], entry["shape"]) for name, entry in kept.items()})
        self.masks[-1] = {f"net.{name}": mask for name, mask in self.masks[-1].items()}
        for name, mask in self.masks[-1].items():
            assert not pl_module.get_parameter(name)[~mask].any()


def scheduler(regrow, schedule=None, **keywords):
    window = Window(end=END, every=EVERY, unit="step")
    return PruningScheduler(
        **{"schedule": schedule or Constant(value=0.6), "window": window, "regrow": regrow} | keywords
    )


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, **{"max_epochs": 3} | settings)
    trainer.fit(module, DataLoader(torch.arange(BATCHES)), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("regrow", KINDS.values(), ids=KINDS.keys())
def test_the_sparsity_is_kept_to_the_weight_and_masks_move_at_jumps_alone(regrow):
    steps = Steps()
    fit(Net(), steps, scheduler(regrow))
    masks = [[state[name] for name in LAYERS] for state in steps.masks]
    for state in masks:
        assert [int((~mask).sum()) for mask in state] == [round(0.6 * 240), round(0.6 * 60)]
    moved = [not same(one, other) for one, other in itertools.pairwise(masks)]
    # Step 0 prunes; steps 2, 4 and 6 are jumps; at 8 the window closes.
    assert [step + 1 for step, has_moved in enumerate(moved) if has_moved] == [2, 4, 6]


def test_gradient_regrowth_is_the_papers_by_hand():
    steps = Steps()
    fit(Net(), steps, scheduler(KINDS["gradient"]))
    for name in LAYERS:
        for step in (2, 4, 6):
            weight, gradient = steps.weights[step][name]
            alive = steps.masks[step - 1][name].flatten().nonzero().flatten().tolist()
            count = round(decayed(0.4, step / END) * len(alive))
            stay = sorted(alive, key=lambda i: abs(float(weight.flatten()[i])))[count:]
            others = [i for i in range(weight.numel()) if i not in stay]
            grown = sorted(others, key=lambda i: -abs(float(gradient.flatten()[i])))[:count]
            found = steps.masks[step][name].flatten().nonzero().flatten().tolist()
            assert sorted(stay + grown) == found


@pytest.mark.parametrize("regrow", KINDS.values(), ids=KINDS.keys())
def test_what_comes_back_starts_at_zero_without_moments(regrow):
    steps, then = Steps(), Steps()
    fit(Net(), steps, scheduler(regrow), then)
    for step in (2, 4, 6):
        old, new = steps.masks[step - 1]["net.0.weight"], steps.masks[step]["net.0.weight"]
        back, stays = new & ~old, new & old
        assert back.any()
        assert not then.weights[step]["net.0.weight"][0][back | ~new].any()
        for key in ("exp_avg", "exp_avg_sq"):
            assert not then.moments[step][key][back | ~new].any()
            assert torch.equal(then.moments[step][key][stays], steps.moments[step][key][stays])


@pytest.mark.parametrize("regrow", KINDS.values(), ids=KINDS.keys())
def test_a_growing_sparsity_is_met_with_regrowth(regrow):
    steps = Steps()
    fit(Net(), steps, scheduler(regrow, Linear(start=0.2, end=0.8)))
    gone = [int((~state["net.0.weight"]).sum()) for state in steps.masks]
    assert gone == [round((0.2 + 0.6 * min(step // EVERY * EVERY, END) / END) * 240) for step in range(12)]


@pytest.mark.parametrize("regrow", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_fit_is_bit_equal(regrow, accumulate, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"accumulate_grad_batches": accumulate, "max_epochs": 3 * accumulate}
    whole = Net()
    trainer = fit(whole, scheduler(regrow), saver, **settings | {"enable_checkpointing": True})
    expected = [dict(whole.state_dict()), trainer.optimizers[0].state_dict()]
    for step in (1, 2, 3, 4, 6, 9):
        resumed = Net()
        trainer = fit(resumed, scheduler(regrow), ckpt_path=tmp_path / f"step={step}.ckpt", **settings)
        assert same(expected, [dict(resumed.state_dict()), trainer.optimizers[0].state_dict()]), step


def test_several_optimizers_under_manual_optimization_each_renew_their_own():
    module, steps = Net(), Steps()
    module.automatic_optimization = False
    fit(module, steps, scheduler(KINDS["gradient"]))
    masks = [[state[name] for name in LAYERS] for state in steps.masks]
    for layer in (0, 1):
        moved = [not torch.equal(one[layer], other[layer]) for one, other in itertools.pairwise(masks)]
        assert [step + 1 for step, has_moved in enumerate(moved) if has_moved] == [2, 4, 6]


def test_an_overflowing_gradient_puts_it_off_to_the_next_step():
    class Overflow(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 2:
                pl_module.net[0].weight.grad[0, 0] = torch.nan
                self.kept = pl_module.net[0].weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:  # the step would have been skipped
                pl_module.net[0].weight.data.copy_(self.kept)
                for state in trainer.optimizers[0].state.values():
                    for key in ("exp_avg", "exp_avg_sq"):
                        state[key].nan_to_num_()

    steps = Steps()
    fit(Net(), Overflow(), scheduler(KINDS["gradient"]), steps)
    masks = [state["net.0.weight"] for state in steps.masks]
    assert torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[2], masks[3])


@pytest.mark.parametrize("regrow", KINDS.values(), ids=KINDS.keys())
def test_only_single_weights_regrow(regrow):
    with pytest.raises(ValueError, match="regrow needs single weights, got structure 'Channel'"):
        scheduler(regrow, structure=Channel(shrink="never"))


@pytest.mark.parametrize(
    "window",
    [
        Window(begin=2, end=8, unit="step", every=6),
        Window(begin=0.1, end=0.4, every=0.3),  # 0.4 - 0.1 is a little more than 0.3
        Window(begin=0.5, every=0.5),
    ],
)
def test_a_window_without_a_jump_between_its_ends_is_refused(window):
    with pytest.raises(ValueError, match="leaves none between begin="):
        scheduler(KINDS["random"], window=window)
    scheduler(KINDS["random"], window=dataclasses.replace(window, every=window.every / 2))


def test_a_window_without_jumps_is_refused():
    with pytest.raises(ValueError, match=r"window\.every is None"):
        scheduler(KINDS["random"], window=Window(end=END, unit="step"))
