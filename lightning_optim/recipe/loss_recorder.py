"""Recorder of what the training steps of a stage are trained with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.trainer.step_output import loss_of
from lightning_optim.recipe.mean_curves import MeanCurves
from lightning_optim.report.loss_curves import TASK, TOTAL, LossCurves
from lightning_optim.surgery.passes import is_repeating
from lightning_optim.surgery.patch import Patches

_MAX_WAITING = 100  # steps whose losses are left where they were computed


@final
class LossRecorder(Callback):
    """Callback that records the module's own loss, each term that callbacks add to it, and what they make of it.

    It comes before all other callbacks: what they add is added between its own two wrappers of the module's methods. Of
    a step that runs several times for one batch the first run counts. Under manual optimization a step's loss is the
    sum over its calls of ``manual_backward``. On several ranks each records its own.
    """

    def __init__(self) -> None:
        self._patches, self._curves = Patches(), MeanCurves()
        self._step: dict[str, Tensor] = {}
        self._waiting: list[dict[str, Tensor]] = []

    @property
    def curves(self) -> LossCurves:
        """The curves of all steps so far."""
        self._take_in()
        return self._curves.read()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._patches.undo()
        if stage == "fit":
            self._patches.wrap(pl_module, "training_step", partial(self._run, TASK, pl_module))
            self._patches.wrap(pl_module, "manual_backward", partial(self._go_back, TASK))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patches.wrap(pl_module, "training_step", partial(self._run, TOTAL, pl_module))
        self._patches.wrap_innermost(pl_module, "manual_backward", partial(self._go_back, TOTAL))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        for callback in callbacks:
            if isinstance(callback, TechniqueCallback):
                self._step.update(callback.take_terms())
        self._waiting.append(self._step)
        self._step = {}
        if len(self._waiting) >= _MAX_WAITING:
            self._take_in()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._patches.undo()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._patches.undo()

    @override
    def state_dict(self) -> dict[str, Any]:
        self._take_in()
        return self._curves.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._curves.load_state_dict(state_dict)

    def _run(
        self, name: str, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        output = original(*args, **kwargs)
        loss = loss_of(output)
        if loss is not None and pl_module.automatic_optimization and not is_repeating():
            self._step.setdefault(name, loss.detach().clone())  # a step may go on to change it in place
        return output

    def _go_back(self, name: str, original: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_repeating():
            self._step[name] = self._step[name] + loss.detach() if name in self._step else loss.detach().clone()
        return original(loss, *args, **kwargs)

    def _take_in(self) -> None:
        """Read the numbers of all steps that wait, in one transfer from the device."""
        losses = [loss.float().mean() for step in self._waiting for loss in step.values()]
        numbers = iter(torch.stack(losses).tolist() if losses else ())
        for step in self._waiting:
            self._curves.add({name: next(numbers) for name in step})
        self._waiting = []
