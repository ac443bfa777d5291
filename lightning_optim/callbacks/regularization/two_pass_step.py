"""Training step in two passes: at the weights, and at those that the gradient of the first pass moves them to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NoReturn, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_optim.callbacks.trainer.lightning_private import (
    blocked_sync,
    own_attributes,
    skips_backward,
)
from lightning_optim.callbacks.trainer.own_parameters import loss_scale_of
from lightning_optim.callbacks.trainer.silent_repeats import silence_repeats
from lightning_optim.callbacks.trainer.step_output import loss_of
from lightning_optim.surgery.generator_state import GeneratorState
from lightning_optim.surgery.module_state import ModuleState
from lightning_optim.surgery.passes import repeating
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import checkpoints_followed

Moves = Callable[[list[nn.Parameter], list[Tensor]], Sequence[Tensor]]
"""Takes weights and their gradients, and returns how far each weight moves."""


class _ReachedError(BaseException):  # user code that catches every Exception is none of its business
    """The first pass of a manual step has come to its backward."""

    def __init__(self, loss: Tensor, weights: list[nn.Parameter], gradients: list[Tensor]) -> None:
        super().__init__()
        self.loss, self.weights, self.gradients = loss.detach(), weights, gradients


@final
class _Before:
    """What a pass begins with: buffers and attributes, random numbers, and which weights are trained."""

    def __init__(self, pl_module: LightningModule, device: torch.device) -> None:
        self._state = ModuleState(pl_module, own_attributes())
        self._numbers = GeneratorState.of(device)
        self._trained = [(parameter, parameter.requires_grad) for parameter in pl_module.parameters()]

    def put_back(self) -> None:
        self._state.put_back()
        self._numbers.restore()
        for parameter, is_trained in self._trained:
            parameter.requires_grad_(is_trained)


@final
class _Moved:
    """Weights that are moved for a while, and what the first pass has left in the module."""

    @torch.no_grad()
    def __init__(self, weights: list[nn.Parameter], moves: Sequence[Tensor], left: ModuleState) -> None:
        self._weights, self._left = weights, left
        self._values = [weight.detach().clone() for weight in weights]
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move)

    @torch.no_grad()
    def put_back(self) -> None:
        for weight, value in zip(self._weights, self._values, strict=True):
            weight.copy_(value)  # a difference would not be exact
        self._left.put_back()


@final
class TwoPassStep:
    """Training step in two passes: the second one runs at moved weights, and gives the gradients.

    Both are the whole step, with all that callbacks add to its loss, the same random numbers, buffers and attributes of
    modules. What is logged, counted and left behind in the module is the first pass's. Weights are put back bit by bit
    once the backward is through, or when anything fails.

    The gradient of the first pass is that of this process and of this batch alone, and leaves no trace in any
    ``.grad``.

    Under manual optimization the step runs up to its ``manual_backward``, then once more from the beginning. There must
    be one in a step, before any optimizer's step.

    Args:
        is_due: Whether the step that begins is to be taken in two passes.
        weights: Which weights move.
        moves: Says how far.
        note: Takes note of the losses of both passes.
    """

    def __init__(
        self,
        *,
        is_due: Callable[[], bool],
        weights: Callable[[], list[nn.Parameter]],
        moves: Moves,
        note: Callable[[Tensor, Tensor], None],
    ) -> None:
        self._is_due, self._weights, self._moves, self._note = is_due, weights, moves, note
        self._patches, self._repeat = Patches(), ExitStack()
        self._moved: _Moved | None = None
        self._first_loss: Tensor | None = None
        self._is_first = self._is_manual = False
        self.has_moved = False

    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take steps so from now on, around all that callbacks wrap around the module's own step."""
        self.detach()
        strategy = trainer.strategy
        self._patches.wrap(strategy, "training_step", partial(self._training_step, trainer, pl_module))
        self._patches.wrap(strategy, "backward", partial(self._backward, trainer))
        self._patches.wrap(strategy.precision_plugin, "backward", self._model_backward)
        silence_repeats(self._patches, pl_module)

    def detach(self) -> None:
        """Take steps as they are, and put weights back that are moved; a second call does nothing."""
        self._patches.undo()
        self._put_back()
        self._first_loss = None
        self._is_first = self._is_manual = self.has_moved = False

    def _training_step(
        self, trainer: Trainer, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        self._put_back()
        run = partial(original, *args, **kwargs)
        if skips_backward(trainer) or not self._is_due():
            return run()
        before = _Before(pl_module, trainer.strategy.root_device)
        if pl_module.automatic_optimization:
            return self._automatic(trainer, pl_module, run, before)
        return self._manual(trainer, pl_module, run, before)

    def _automatic(self, trainer: Trainer, pl_module: LightningModule, run: Callable[[], Any], before: _Before) -> Any:
        with blocked_sync(trainer), checkpoints_followed(_not_reentrant):
            first = run()
        loss = loss_of(first)
        if loss is None or not loss.requires_grad:
            return first
        self._move(pl_module, before, *self._ascent(trainer, loss))
        with self._put_back_after_errors():
            second = run()
        self._repeat.close()
        moved = loss_of(second)
        if moved is None:
            self._put_back()
            return second
        self._note(loss.detach(), moved.detach())
        return {**first, "loss": moved} if isinstance(first, Mapping) else moved

    def _manual(self, trainer: Trainer, pl_module: LightningModule, run: Callable[[], Any], before: _Before) -> Any:
        self._is_first = True
        try:
            with blocked_sync(trainer), checkpoints_followed(_not_reentrant), _without_steps(trainer):
                return run()  # a step without a backward
        except _ReachedError as reached:
            loss, weights, gradients = reached.loss, reached.weights, reached.gradients
        finally:
            self._is_first = False
        self._move(pl_module, before, weights, gradients)
        self._first_loss, self._is_manual = loss, True
        try:
            with self._put_back_after_errors():
                return run()
        finally:
            self._is_manual = False
            self._put_back()

    def _ascent(self, trainer: Trainer, loss: Tensor) -> tuple[list[nn.Parameter], list[Tensor]]:
        """The weights that the loss depends on, and its gradients."""
        weights, scale = self._weights(), loss_scale_of(trainer)
        if not weights:
            return [], []
        found = torch.autograd.grad(loss if scale == 1.0 else loss * scale, weights, allow_unused=True)
        pairs = [(weight, gradient) for weight, gradient in zip(weights, found, strict=True) if gradient is not None]
        dense = [gradient.to_dense() if gradient.is_sparse else gradient for _, gradient in pairs]
        return [weight for weight, _ in pairs], [gradient / scale if scale != 1.0 else gradient for gradient in dense]

    def _move(
        self, pl_module: LightningModule, before: _Before, weights: list[nn.Parameter], gradients: list[Tensor]
    ) -> None:
        """Move the weights, and let the step begin as it began."""
        left = ModuleState(pl_module, own_attributes())
        before.put_back()
        with torch.no_grad():
            moves = self._moves(weights, gradients) if weights else []
        self._moved, self.has_moved = _Moved(weights, moves, left), True
        self._repeat.enter_context(repeating())

    def _put_back(self) -> None:
        self._repeat.close()
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.put_back()

    @contextmanager
    def _put_back_after_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._put_back()
            raise

    def _backward(self, trainer: Trainer, original: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._is_first:
            raise _ReachedError(loss, *self._ascent(trainer, loss))
        if self._is_manual:
            if self._first_loss is None:
                raise ValueError(
                    "SharpnessAware needs a training step that calls self.manual_backward once, and this one called it "
                    "again: each gradient is taken at weights of its own; add the losses up before one manual_backward"
                )
            self._note(self._first_loss, loss.detach())
            self._first_loss = None
        return original(loss, *args, **kwargs)

    def _model_backward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            self._put_back()


def _not_reentrant(
    function: Callable[..., Any], args: tuple[Any, ...], is_detached: bool
) -> Callable[..., Any]:  # torch's
    if is_detached:
        raise ValueError(
            "SharpnessAware asks for the gradients of chosen weights, which those inside a reentrant checkpoint do not "
            "have: pass use_reentrant=False to torch.utils.checkpoint.checkpoint"
        )
    return function


@contextmanager
def _without_steps(trainer: Trainer) -> Iterator[None]:
    """Refuse steps of optimizers: what comes before the backward runs twice."""
    hooks = [optimizer.register_step_pre_hook(_refuse_step) for optimizer in trainer.optimizers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_step(*_: object) -> NoReturn:
    raise ValueError(
        "SharpnessAware runs a training step up to its backward twice, and this one takes an optimizer's step before "
        "that: call self.manual_backward(loss), in place of loss.backward(), once in a step and before optimizer.step()"
    )
