"""Activation checkpointing changes nothing: forwards that run once more in the backward count for nothing."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_optim.errors import TapError


def run(function, x, reentrant):
    return function(x) if reentrant is None else checkpoint(function, x, use_reentrant=reentrant)


def checkpointing(kind, reentrant, *, whole):
    """A module that runs its network in a checkpoint, or the features of the network in two, one around the other."""

    class Checkpointing(kind):
        def __init__(self, seed, network):
            class Net(network):
                def features(self, x):
                    def activated(x):
                        return torch.tanh(run(features, x, inner)) * 2.0

                    features, inner = super().features, None if whole else reentrant
                    return run(activated, x, inner)

            super().__init__(seed, Net)
            for layer in self.net.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 0.0  # statistics change in the second forward, too, with or without a callback
            self.gradients = []

        def forward(self, x):
            x = x.requires_grad_(self.training)  # without it, reentrant checkpoints have no gradient at all
            return run(self.net, x, reentrant if whole else None)

        def on_before_optimizer_step(self, _):
            named = self.named_parameters()
            self.gradients.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    return Checkpointing


def plain(state):
    """State without what counts the forwards of batch norms."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items() if "num_batches_tracked" not in str(key)}
    return [plain(each) for each in state] if isinstance(state, (list, tuple)) else state


@functools.cache  # what nothing was recomputed in is compared with more than once
def end(case, kit, kind, reentrant, *, whole):
    module, callback = case.module(kind=checkpointing(kind, reentrant, whole=whole)), case.make()
    trainer = kit.fit(module, callback)
    logged = {name: value for name, value in trainer.callback_metrics.items() if "/" in name}
    return plain([module.gradients, module.state_dict(), callback.state_dict(), logged])


@pytest.mark.parametrize(
    ("kind", "whole", "reentrant"),
    [
        pytest.param("Module", True, False, id="saved-network"),
        pytest.param("ManualModule", False, True, id="reentrant-parts"),
        pytest.param("Module", True, True, id="reentrant-network", marks=pytest.mark.crossed),
        pytest.param("ManualModule", False, False, id="saved-parts", marks=pytest.mark.crossed),
    ],
)
def test_gradients_evidence_and_ranges_are_those_without_checkpointing(case, kit, kind, whole, reentrant):
    # There torch has no gradient of a gradient, and no gradient of chosen weights alone.
    if reentrant and (case.leaf == "jacobian" or case.callback == "sharpness_aware"):
        with pytest.raises((RuntimeError, ValueError), match="use_reentrant=False"):
            end(case, kit, getattr(kit, kind), reentrant, whole=whole)
        return
    if case.runs_steps_twice and (kind == "ManualModule" or reentrant):
        with pytest.raises((ValueError, TapError), match=r"under manual optimization|use_reentrant=False"):
            end(case, kit, getattr(kit, kind), reentrant, whole=whole)
        return
    # A first forward that is reentrant records no gradient, so neither do the features in it.
    if reentrant and case.place and (whole or case.place == "net.stem"):
        with pytest.raises(TapError, match="use_reentrant=False"):
            end(case, kit, getattr(kit, kind), reentrant, whole=whole)
        return
    ends = [end(case, kit, getattr(kit, kind), each, whole=whole) for each in (None, reentrant)]
    kit.same(*ends)
