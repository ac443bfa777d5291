"""Regularization by penalties: weights are pulled towards what generalizes, or can be taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.regularization.network_watch import NetworkWatch
from lightning_optim.callbacks.trainer.added_loss import AddedLoss, TrainingStep
from lightning_optim.callbacks.trainer.clock import clock_of
from lightning_optim.callbacks.trainer.lightning_private import transfer_batch
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.callbacks.trainer.reshape import Reshaper
from lightning_optim.checked import checked
from lightning_optim.errors import CaptureError
from lightning_optim.regularization.coupled_groups import named_parameters
from lightning_optim.regularization.penalty.base import Penalized, Penalty
from lightning_optim.regularization.selection import Place, check_trained, select_weights
from lightning_optim.regularization.settings import PenaltySettings
from lightning_optim.schedule.factor import Factor
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.select import Targets, check_initialized, find_network
from lightning_optim.window import Window


@final
@checked
class PenaltyRegularizer(TechniqueCallback):
    """Penalties on weights: adds ``sum of strength * penalty`` to the loss of each training step.

    Under gradient accumulation each batch carries the penalty, so that an optimizer step sees it once. A penalty is
    computed in float32 at least, whatever the precision of the Trainer.

    One that is named in ``decoupled`` is not added: after each optimizer step a weight loses the share
    ``learning rate * strength`` of itself, the rate being that of its group in the optimizer (decoupled weight decay,
    as in AdamW; arXiv:1711.05101). A step that is skipped, or a weight without a gradient, is left alone, and clipping
    does not touch it.

    Where ``DistillationTeacher`` stands in the same Trainer, list it first: it multiplies the loss that it finds by its
    ``hard_weight``, penalties included.

    Each penalty is logged as ``regularization/<key>``, before it is multiplied by its strength.

    Args:
        penalties: One penalty, whose key is then its class name in snake case, or several by key.
        strength: Factor of every penalty, or of each by key: numbers of at least 0, or schedules over ``window``.
        targets: Layers that every penalty looks at, or each by key, by names relative to the LightningModule; ``None``,
            and a key that is left out, is all that it can look at.
        decoupled: Keys of L2 penalties that are applied after each optimizer step.
        network: Name of the network in the LightningModule, ``""`` for the LightningModule itself; ``None`` finds it.
            Coupled channels are those of the network.
        window: When to penalize; before it opens nothing is changed. ``None`` is the whole fit.
        backward_index: Under manual optimization, which ``manual_backward`` of a step the penalties join, from 0.
        name: Tells several instances in one Trainer apart: each needs a name of its own. Logs become
            ``regularization/<name>/<key>``.

    Raises:
        TypeError: If a penalty, strength or target is of another kind.
        ValueError: If a value is out of range, keys differ, or all strengths are 0, so that there is nothing to do.

    Example:
        >>> from lightning_optim.regularization import L2
        >>> callback = PenaltyRegularizer(penalties=L2(), strength=1e-4)
        >>> callback.state_key, callback.strength
        ("PenaltyRegularizer{'name': None}", {'l2': 0.0001})
    """

    def __init__(
        self,
        *,
        penalties: Penalty | Mapping[str, Penalty],
        strength: Factor | Mapping[str, Factor],
        targets: Targets | Mapping[str, Targets] | None = None,
        decoupled: Sequence[str] = (),
        network: str | None = None,
        window: Window | None = None,
        backward_index: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._settings = PenaltySettings(penalties, strength, targets, decoupled)
        self.penalties, self.strength = self._settings.penalties, self._settings.strengths
        self.targets, self.decoupled = self._settings.targets, self._settings.decoupled
        self.network, self.backward_index = network, backward_index
        self.window = Window() if window is None and self._settings.has_schedule else window
        self._added = AddedLoss(
            self._add,
            begin=self._begin_step,
            end=self._end_step,
            window=self.window,
            backward_index=backward_index,
        )
        self._watch = NetworkWatch(
            needs_groups=self._settings.needs_groups, needs_responses=self._settings.needs_responses
        )
        self._weights: dict[str, dict[str, Place]] = {}
        self._decay: float | None = None  # progress of the batch under way, if decoupled penalties act in it
        self._hooks: list[RemovableHandle] = []

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.release()
        find_network(pl_module, self.network, needs_forward=False)
        Reshaper.check_whole(trainer, "penalties")
        self._added.attach(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(trainer, pl_module)
        settings = (self._settings, self.window, self.backward_index, [*map(list, self._weights.values())])
        check_ranks_agree(trainer, settings, "the settings of PenaltyRegularizer")
        self._rehearse(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._added.check(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._decay = None

    @override
    def state_dict(self) -> dict[str, Any]:
        progress = self._added.state_dict()
        return {"progress": progress} if progress else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._added.load_state_dict(state_dict.get("progress", {}))

    @override
    def release(self) -> None:
        self._added.detach()
        self._watch.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._weights, self._decay = [], {}, None

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights, once every callback has set its own structure up."""
        if self._weights:
            return
        name, network = find_network(pl_module, self.network, needs_forward=False)
        check_initialized(network, name)
        self._watch.attach(pl_module, name, network)
        trained = {id(held) for each in trainer.optimizers for group in each.param_groups for held in group["params"]}
        found = {}
        for key, penalty in self.penalties.items():
            found[key] = select_weights(pl_module, key, penalty, self.targets[key])
            check_trained(key, found[key], trained)
        self._weights = found
        if self.decoupled:
            self._hooks = [optimizer.register_step_post_hook(self._decayed) for optimizer in trainer.optimizers]

    def _rehearse(self, pl_module: LightningModule) -> None:
        """Look at coupled channels with the module's example input, so that what is wrong is refused early."""
        example = pl_module.example_input_array
        if not self._settings.needs_groups or example is None:
            return
        _, network = find_network(pl_module, self.network, needs_forward=False)
        inputs = Inputs.of(transfer_batch(pl_module, example))
        try:
            self._watch.couple(network, inputs.args, inputs.kwargs)
        except CaptureError:
            return  # the network may be called otherwise than the module, and that call counts
        for key, penalty in self.penalties.items():
            if penalty.needs_groups:
                self._seen(pl_module, key)

    def _begin_step(self, step: TrainingStep) -> None:
        # Lightning's learning-rate finder trains before this callback's on_fit_start.
        self._attach(step.pl_module.trainer, step.pl_module)
        self._decay = step.progress
        self._watch.open()

    def _end_step(self) -> None:
        self._watch.close()

    def _add(self, loss: Tensor, step: TrainingStep) -> Tensor:
        values: dict[str, Tensor] = {}
        with torch.autocast(loss.device.type, enabled=False):
            for key, penalty in self.penalties.items():
                with torch.set_grad_enabled(key not in self.decoupled):
                    values[key] = penalty(self._seen(step.pl_module, key))
        self.log_terms(step.pl_module, "regularization", values)
        return self._settings.add(loss, values, step.progress)

    def _seen(self, pl_module: LightningModule, key: str) -> Penalized:
        places = self._weights[key]
        weights = {name: place.parameter for name, place in places.items()}
        layers = {name: place.layer for name, place in places.items()}
        if self.penalties[key].needs_responses:
            draw = (clock_of(pl_module.trainer).batch, pl_module.global_rank)
            return Penalized(weights=weights, layers=layers, responses=self._watch.responses(), draw=draw)
        if not self.penalties[key].needs_groups:
            return Penalized(weights=weights, layers=layers)
        name, network = find_network(pl_module, self.network, needs_forward=False)
        prefix = f"{name}." if name else ""
        inner = [weight.removeprefix(prefix) for weight in weights if weight.startswith(prefix)]
        groups = self._watch.groups(network, inner)
        return Penalized(weights=weights, layers=layers, groups=groups, parameters=named_parameters(network))

    def _decayed(self, optimizer: Optimizer, *_: object) -> None:
        """Let weights decay after a step of the optimizer that has them."""
        if self._decay is None:
            return
        rates = {id(held): group["lr"] for group in optimizer.param_groups for held in group["params"]}
        for key in self.decoupled:
            strength = self._settings.strength(key, self._decay)
            for place in self._weights[key].values():
                weight = place.parameter
                if id(weight) in rates and weight.grad is not None:
                    weight.detach().mul_(1.0 - rates[id(weight)] * strength)
