"""Added loss: a term that a callback adds to the loss of each training step, such as a penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_optim.callbacks.trainer.clock import FitProgress
from lightning_optim.callbacks.trainer.lightning_private import is_compiled
from lightning_optim.callbacks.trainer.step_output import loss_of, with_loss
from lightning_optim.errors import TapError
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import never_compiled
from lightning_optim.window import Window


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One training step, as an added term sees it.

    Args:
        pl_module: The module that takes it.
        progress: How far through its window the term is, in ``[0, 1]``; 1 without a window.
        batch: What ``training_step`` received.
    """

    pl_module: LightningModule
    progress: float
    batch: Any


@final
@dataclass(slots=True)
class _Running:
    """A training step in progress."""

    step: TrainingStep
    num_backwards: int = 0


def _do_nothing(*_: object) -> None: ...


@final
class AddedLoss:
    """Added loss: changes the loss of each training step, under automatic and under manual optimization.

    ``training_step`` and ``manual_backward`` are wrapped on the instance: the loss that the user's code returns, alone
    or in a mapping, or passes to ``manual_backward``, goes through ``add`` first. A step without a loss (``None``) is
    left as it is. Where several callbacks add, each receives what the one that attached before it has made.

    Args:
        add: Receives the loss and the step, and returns the loss to train with.
        begin: Is called before the step, and again after each ``manual_backward`` that ``add`` does not join: the
            graph of what has been computed up to there is gone.
        end: Is called when the step has ended, even by an exception.
        window: When to add; before it opens the step is left as it is. ``None`` is the whole fit.
        backward_index: Under manual optimization, which ``manual_backward`` of a step ``add`` joins, from 0.

    Raises:
        TypeError: If ``window`` is of another kind.
        ValueError: If ``backward_index`` is negative.
    """

    def __init__(
        self,
        add: Callable[[Tensor, TrainingStep], Tensor],
        *,
        begin: Callable[[TrainingStep], None] = _do_nothing,
        end: Callable[[], None] = _do_nothing,
        window: Window | None = None,
        backward_index: int = 0,
    ) -> None:
        if not (window is None or isinstance(window, Window)):
            raise TypeError(f"window must be a Window, got {type(window).__name__}")
        if backward_index < 0:
            raise ValueError(f"backward_index must be at least 0, got {backward_index}")
        self._add, self._begin, self._end = add, begin, end
        self._progress = None if window is None else FitProgress(window)
        self._backward_index = backward_index
        self._patches = Patches()
        self._running: _Running | None = None
        self._has_added = False

    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the module's methods, in ``prepare``; what an earlier fit left is taken off first."""
        self.detach()
        self._has_added = False
        for method, wrapper in (
            ("training_step", self._training_step),
            ("on_train_epoch_end", self._on_train_epoch_end),
        ):
            self._patches.wrap(pl_module, method, partial(wrapper, trainer, pl_module))
        # A loss comes out of the step from the inside, and into the backward from the outside.
        self._patches.wrap_innermost(pl_module, "manual_backward", partial(self._manual_backward, trainer, pl_module))
        if is_compiled(pl_module):
            # Lightning 2.6 cannot trace its own `log`: a compiled module that logs fails without us as well.
            self._patches.wrap(pl_module, "log", never_compiled(_call))

    def check(self, trainer: Trainer) -> None:
        """Refuse a window that this fit never reaches, in ``on_train_start``.

        Raises:
            ValueError: If the window opens after the fit ends, or needs an end that the fit does not have.
        """
        if self._progress is not None:
            self._progress.check(trainer)

    def detach(self) -> None:
        """Take every wrapper off; a second call does nothing."""
        self._patches.undo()
        self._running = None

    def state_dict(self) -> dict[str, Any]:
        """Progress through the window, for the callback's own state; empty without a window."""
        return {} if self._progress is None else self._progress.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; the state of a term without a window changes nothing."""
        if self._progress is not None and state:
            self._progress.load_state_dict(state)

    def _read_progress(self, trainer: Trainer) -> float | None:
        return 1.0 if self._progress is None else self._progress.read(trainer)

    def _training_step(
        self, trainer: Trainer, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        progress = self._read_progress(trainer)
        if progress is None:
            return original(*args, **kwargs)
        batch = args[0] if args else next(iter(kwargs.values()), None)
        self._running = running = _Running(TrainingStep(pl_module=pl_module, progress=progress, batch=batch))
        try:
            self._begin(running.step)
            output = original(*args, **kwargs)
            if pl_module.automatic_optimization:
                return self._add_to_output(output, running.step)
            self._check_backwards(running)
            return output
        finally:
            self._running = None
            self._end()

    def _add_to_output(self, output: Any, step: TrainingStep) -> Any:
        """Add to the loss in whatever a training step may return; anything else is for Lightning to refuse."""
        loss = loss_of(output)
        return output if loss is None else with_loss(output, self._add_to(loss, step))

    def _add_to(self, loss: Tensor, step: TrainingStep) -> Tensor:
        total = self._add(loss, step)
        self._has_added = True
        return total

    def _manual_backward(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        original: Callable[..., Any],
        loss: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        running = self._running
        if running is None:
            original(loss, *args, **kwargs)
            return
        is_due = running.num_backwards == self._backward_index
        running.num_backwards += 1
        original(self._add_to(loss, running.step) if is_due else loss, *args, **kwargs)
        if not is_due:
            self._begin(running.step)  # activation checkpointing has just repeated some of the computation

    def _check_backwards(self, running: _Running) -> None:
        if 0 < running.num_backwards <= self._backward_index:
            raise ValueError(
                f"backward_index={self._backward_index} needs {self._backward_index + 1} calls of manual_backward in a "
                f"training step, but there were {running.num_backwards}"
            )

    def _on_train_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        has_added, self._has_added = self._has_added, False
        if not has_added and (self._read_progress(trainer) or 0.0) > 0.0 and not pl_module.automatic_optimization:
            raise TapError(
                "no training step of this epoch called self.manual_backward, so nothing was added to its loss: "
                "call it in place of loss.backward()"
            )
        return original(*args, **kwargs)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
