"""Steps of architecture parameters on held-out batches, between the steps of the weights."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_optim.callbacks.nas.held_out import HeldOutBatches, SplittableLoader, split_loader
from lightning_optim.callbacks.trainer.lightning_private import own_attributes, train_source, transfer_batch
from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.callbacks.trainer.own_parameters import OwnParameters, loss_scale_of
from lightning_optim.callbacks.trainer.silent_repeats import silence_repeats
from lightning_optim.callbacks.trainer.step_output import loss_of
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.nas.sampler.learned import LearnedSampler, LearnedState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.surgery.generator_state import seeded
from lightning_optim.surgery.module_state import ModuleState
from lightning_optim.surgery.passes import repeating
from lightning_optim.surgery.patch import Patches, unwrap


@final
class ArchitectureStep:
    """Steps of architecture parameters.

    The parameters are the callback's own, the same on all ranks, and never part of the user's module. A step takes the
    loss of the user's ``training_step`` on a held-out batch. Buffers, random numbers, logs and gradients of the user's
    module are left as they are.

    Args:
        sampler: The setting.
        seed: Seeds the split and the random numbers of the steps.
        run: Makes the supernet run a path.
    """

    def __init__(self, sampler: LearnedSampler, seed: int, run: Callable[[Path], None]) -> None:
        self._sampler, self._seed, self._run = sampler, seed, run
        self._patches = Patches()
        self._held_out: HeldOutBatches | SplittableLoader | None = None
        self._own: OwnParameters | None = None
        self._state: LearnedState | None = None
        self._waiting: Mapping[str, Any] | None = None
        self._refusal: Exception | None = None

    def prepare(self, trainer: Trainer) -> None:
        """Let the fit's training data be split when they are loaded, in ``setup``."""
        if strategy_kind(trainer) is StrategyKind.SHARDED:
            raise ValueError(
                f"{type(self._sampler).__name__} takes gradients of architecture parameters, for which "
                f"{strategy_name(trainer)} would gather all weights once more; use DDPStrategy"
            )
        self.release()
        self._refusal = None
        self._patches.wrap(train_source(trainer), "dataloader", partial(self._split, trainer))

    def start(self, state: LearnedState) -> None:
        """Begin with the architecture parameters of one supernet, or go on with them."""
        if self._state is not state:
            self._state, self._own = state, OwnParameters(state.parameters.values.values(), self._optimizer)
            if self._waiting is not None:
                self._own.load_state_dict(self._waiting)
        self._waiting = None

    def forget(self) -> None:
        """Let another supernet be the next to start."""
        self._state = self._own = None

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Carry the parameters to the module's device, in ``on_train_start``.

        Raises:
            TypeError: If the training data cannot be split.
            ValueError: If they cannot be split, or under manual optimization.
        """
        name = type(self._sampler).__name__
        if self._refusal is not None:
            raise self._refusal
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{name} takes the loss of a training step for architecture parameters, but under manual optimization "
                "a training step steps the weights itself; use automatic optimization, or UniformSampling"
            )
        own, state = self._started
        own.move(trainer.strategy.root_device)
        if state.costs is not None:
            state.costs = trainer.strategy.broadcast(state.costs)  # ranks measure other times
        silence_repeats(self._patches, pl_module)

    def take(self, trainer: Trainer, pl_module: LightningModule, step: int, progress: float) -> None:
        """Take one step, before the first batch of an optimizer step, once the warm-up is over."""
        if progress < self._sampler.steps.warmup:
            return
        own, state = self._started
        before = {name: value.detach().clone() for name, value in state.parameters.values.items()}
        scale = loss_scale_of(trainer)
        gradients = self._gradients(trainer, pl_module, step, progress, scale)
        for tensor, gradient in zip(own.tensors, gradients, strict=True):
            tensor.grad = gradient
        own.note_step(trainer)
        own.end_batch(trainer)
        state.settle(step, before)

    def release(self) -> None:
        """Take every patch off; a second call does nothing."""
        self._patches.undo()

    def state_dict(self) -> dict[str, Any]:
        """The parameters and their optimizer, as primitives and tensors; empty before there are any."""
        return dict(self._waiting or {}) if self._own is None else self._own.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned: now, or once there are parameters."""
        if self._own is None:
            self._waiting = dict(state) or None
        elif state:
            self._own.load_state_dict(state)

    @property
    def _started(self) -> tuple[OwnParameters, LearnedState]:
        assert self._own is not None, "a fit begins with on_fit_start"
        assert self._state is not None, "as above"
        return self._own, self._state

    def _optimizer(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        steps = self._sampler.steps
        return torch.optim.Adam(
            tensors, steps.learning_rate, betas=self._sampler.betas, weight_decay=steps.weight_decay
        )

    def _split(self, trainer: Trainer, original: Callable[..., Any]) -> Any:
        # Lightning calls this while it has DataLoader itself wrapped, and an error here would leave it so for good:
        # what is refused is raised once the fit begins.
        given = original()
        try:
            return self._held_apart(trainer, given)
        except (TypeError, ValueError) as error:
            self._refusal = error
            return given

    def _held_apart(self, trainer: Trainer, given: Any) -> Any:
        share = self._sampler.steps.held_out
        loader: Any
        if isinstance(given, SplittableLoader):
            loader, self._held_out = given.hold_out(share, self._seed)
            num_kept = loader.num_samples
        else:
            ranks = trainer.global_rank, trainer.world_size
            loader, self._held_out = split_loader(given, share, self._seed, *ranks)
            num_kept = len(loader.dataset)
        num_held = self._held_out.num_samples
        tell(
            trainer,
            f"{type(self._sampler).__name__}: {num_held} of {num_held + num_kept} training samples, drawn with seed "
            f"{self._seed}, are held out for the steps of architecture parameters; the weights train on {num_kept}",
        )
        return loader

    def _gradients(
        self, trainer: Trainer, pl_module: LightningModule, step: int, progress: float, scale: float
    ) -> list[Tensor | None]:
        own, state = self._started
        assert self._held_out is not None, "training data are loaded before the first batch"
        device, seed = trainer.strategy.root_device, random.Random(f"{self._seed}/{step}/step").getrandbits(62)
        module_state = ModuleState(pl_module, own_attributes())
        try:
            with seeded(seed, device), repeating():
                batch = transfer_batch(pl_module, trainer.precision_plugin.convert_input(self._held_out.batch(step)))
                self._run(state.architecture_path(step, progress))
                with trainer.strategy.precision_plugin.train_step_context():
                    loss = loss_of(pl_module.training_step(*_arguments(pl_module, batch)))
                if loss is None or not loss.requires_grad:
                    return [None] * len(own.tensors)
                term = state.cost_term()
                total = loss if term is None else loss + term
                return list(torch.autograd.grad(total * scale, own.tensors, allow_unused=True))
        finally:
            module_state.put_back()


def _arguments(pl_module: LightningModule, batch: Any) -> tuple[Any, ...]:
    """What the user's step takes: the batch, and its number if asked for."""
    taken = inspect.signature(unwrap(pl_module.training_step)).parameters
    if "dataloader_iter" in taken:
        raise ValueError(
            "architecture steps call training_step with a held-out batch, and this one takes dataloader_iter: let it "
            "take a batch"
        )
    num_given = sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in taken.values())
    return (batch, 0)[: max(1, min(2, num_given))]
