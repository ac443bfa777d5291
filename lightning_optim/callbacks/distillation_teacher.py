"""Train a student against a teacher as well as against its own loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.trainer.clock import clock_of
from lightning_optim.callbacks.trainer.lightning_private import is_compiled, transfer_batch
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.distillation.loss.base import Context, Loss
from lightning_optim.distillation.objective import DistillationObjective, LossWeight
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.distillation.teacher.module import ModuleTeacher
from lightning_optim.errors import TapError
from lightning_optim.surgery.calls import NetworkCalls
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import find_network
from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.window import Window


@final
@dataclass(slots=True)
class _Step:
    """One training step in progress."""

    context: Context
    num_backwards: int = 0


@final
class DistillationTeacher(TechniqueCallback):
    """Adds to each training step what the student's answers are from a teacher's (knowledge distillation).

    The loss becomes ``hard_weight * own loss + sum of weight * transfer loss``, each transfer loss averaged over the
    step's calls of the network. The teacher receives the very inputs that the network received, stays in evaluation
    mode, and lies in this callback: it is in no ``state_dict``, no optimizer and no copy of the student. Validation and
    testing are left as they are.

    Logs ``distillation/<key of the loss>``, before its weight.

    Args:
        teacher: Where the teacher comes from; a module may be given as it is.
        losses: One transfer loss, or several by key; ``None`` is the soft-target loss.
        network: Name of the student's network in the LightningModule, ``""`` for the LightningModule itself;
            ``None`` finds it.
        weight: Factor of every transfer loss, or of each by key: numbers of at least 0, or schedules over ``window``.
        hard_weight: Factor of the LightningModule's own loss: a number of at least 0, or a schedule over ``window``.
        window: When to distil; before it opens nothing is changed. ``None`` is the whole fit.
        backward_index: Under manual optimization, which ``manual_backward`` of a step the losses join, from 0.
            They see the network's calls since the one before, and only that loss is multiplied by ``hard_weight``.
        name: Tells several instances in one Trainer apart: each needs a name of its own. Logs become
            ``distillation/<name>/<key>``.

    Raises:
        TypeError: If a teacher, loss or weight is of another kind.
        ValueError: If a value is out of range, or all weights are 0, so that there would be nothing to do.

    Example:
        >>> callback = DistillationTeacher(nn.Linear(4, 3), weight=0.9, hard_weight=0.1)
        >>> callback.state_key
        "DistillationTeacher{'name': None}"
    """

    def __init__(
        self,
        teacher: Teacher | nn.Module,
        losses: Mapping[str, Loss] | Loss | None = None,
        network: str | None = None,
        weight: LossWeight | Mapping[str, LossWeight] = 0.5,
        hard_weight: LossWeight = 0.5,
        window: Window | None = None,
        backward_index: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._source = _as_teacher(teacher)
        self._mixture = DistillationObjective(losses, weight, hard_weight)
        if not (window is None or isinstance(window, Window)):
            raise TypeError(f"window must be a Window, got {type(window).__name__}")
        if backward_index < 0:
            raise ValueError(f"backward_index must be at least 0, got {backward_index}")
        self._window = Window() if window is None and self._mixture.has_schedule else window
        self._network, self._backward_index = network, backward_index
        self._teacher: FrozenTeacher | None = None
        self._patches, self._calls = Patches(), NetworkCalls()
        self._step: _Step | None = None
        self._has_distilled = False

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher's network, once a fit has begun."""
        return None if self._teacher is None else self._teacher.module

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.release()
        if self._teacher is None:
            module = self._source.load(lambda: find_network(pl_module, self._network)[1])
            _check_shares_nothing(module, pl_module)  # before it is frozen
            self._teacher = FrozenTeacher(module, self._source.precision)
        _check_shares_nothing(self._teacher.module, pl_module)
        for method, wrapper in (("training_step", self._training_step), ("manual_backward", self._manual_backward)):
            self._patches.wrap(pl_module, method, partial(wrapper, trainer, pl_module))
        if is_compiled(pl_module):
            # Lightning 2.6 cannot trace its own `log`: a compiled module that logs fails without us as well.
            self._patches.wrap(pl_module, "log", torch._dynamo.disable(_call))  # type: ignore[no-untyped-call]  # torch

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(trainer, pl_module)
        if self._window is not None:
            self._window.check(clock_of(trainer))
        digest = self._frozen().digest() if trainer.world_size > 1 else ()
        settings = (self._mixture, self._window, self._backward_index, digest)
        check_ranks_agree(trainer, settings, "the settings of DistillationTeacher or the teacher's weights")
        self._rehearse(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_distilled = False

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self._window is None or (self._window.progress(clock_of(trainer)) or 0.0) > 0.0
        if is_due and not self._has_distilled and not pl_module.automatic_optimization:
            raise TapError(
                "no training step of this epoch called self.manual_backward, so nothing was distilled: "
                "call it in place of loss.backward()"
            )

    @override
    def release(self) -> None:
        self._patches.undo()
        self._calls.remove()
        self._step = None

    def _frozen(self) -> FrozenTeacher:
        assert self._teacher is not None
        return self._teacher

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the network and place the teacher beside it, once every callback has set its own structure up."""
        if self._calls.name is not None:
            return
        name, network = find_network(pl_module, self._network)
        floats = (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
        self._frozen().place(trainer.strategy.root_device, next(floats, torch.float32))
        self._calls.attach(pl_module, name, network)

    def _rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare once on the module's example input, so that a wrong teacher is refused before any data is read.

        On several ranks the first step finds the same fault, and a forward pass out of turn might not be in lockstep.
        """
        example = pl_module.example_input_array
        if example is None or trainer.world_size > 1:
            return
        example = transfer_batch(pl_module, example)
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        self._calls.open()
        try:
            devices = [trainer.strategy.root_device] if trainer.strategy.root_device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
                _call_on_example(pl_module, example)
                self._compare(self._calls.take(), Context(progress=0.0, batch=example))
        except TapError:
            return  # forward may take another way than the training step, which is what counts
        finally:
            self._calls.close()
            for module, mode in modes.items():
                module.training = mode

    def _training_step(
        self, trainer: Trainer, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        progress = 1.0 if self._window is None else self._window.progress(clock_of(trainer))
        if progress is None:
            return original(*args, **kwargs)
        # Lightning's learning-rate finder trains before this callback's on_fit_start.
        self._attach(trainer, pl_module)
        batch = args[0] if args else next(iter(kwargs.values()), None)
        self._step = _Step(Context(progress=progress, batch=batch))
        self._calls.open()
        try:
            output = original(*args, **kwargs)
            if pl_module.automatic_optimization:
                return self._add_to_output(pl_module, output, self._step)
            self._check_backwards(self._step)
            return output
        finally:
            self._calls.close()
            self._step = None

    def _add_to_output(self, pl_module: LightningModule, output: Any, step: _Step) -> Any:
        """Add to the loss in whatever a training step may return; anything else is for Lightning to refuse."""
        if isinstance(output, Tensor):
            return self._add(pl_module, output, step)
        if isinstance(output, Mapping) and isinstance(output.get("loss"), Tensor):
            return {**output, "loss": self._add(pl_module, output["loss"], step)}
        return output

    def _manual_backward(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        original: Callable[..., Any],
        loss: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        step = self._step
        if step is None:
            original(loss, *args, **kwargs)
            return
        is_due = step.num_backwards == self._backward_index
        step.num_backwards += 1
        if is_due:
            loss = self._add(pl_module, loss, step)
        original(loss, *args, **kwargs)
        if not is_due:
            # The graph of the calls so far is gone, and activation checkpointing has just repeated some of them.
            self._calls.open()

    def _check_backwards(self, step: _Step) -> None:
        if 0 < step.num_backwards <= self._backward_index:
            raise ValueError(
                f"backward_index={self._backward_index} needs {self._backward_index + 1} calls of manual_backward in a "
                f"training step, but there were {step.num_backwards}"
            )

    def _add(self, pl_module: LightningModule, own: Tensor, step: _Step) -> Tensor:
        values = self._compare(self._calls.take(), step.context)
        for key, value in values.items():
            pl_module.log(self.metric("distillation", key), value.detach())
        self._has_distilled = True
        return self._mixture.total(own, values, step.context.progress)

    def _compare(self, calls: list[ModuleCall], context: Context) -> dict[str, Tensor]:
        return self._mixture.compare([(call, self._frozen()(call)) for call in calls], context)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _call_on_example(module: nn.Module, example: Any) -> None:
    """Call as Lightning does: a tuple or list is positional arguments, a mapping keyword arguments."""
    if isinstance(example, (tuple, list)):
        module(*example)
    elif isinstance(example, Mapping):
        module(**example)
    else:
        module(example)


def _as_teacher(teacher: Any) -> Teacher:
    if isinstance(teacher, nn.Module):
        return ModuleTeacher(module=teacher)
    if not isinstance(teacher, Teacher):
        raise TypeError(f"teacher must be a module or a source such as Checkpoint, got {type(teacher).__name__}")
    return teacher


def _check_shares_nothing(teacher: nn.Module, pl_module: LightningModule) -> None:
    own = {id(parameter) for parameter in pl_module.parameters()}
    shared = next((name for name, parameter in teacher.named_parameters() if id(parameter) in own), None)
    if shared is not None:
        raise ValueError(
            f"the teacher's weight {shared!r} is the student's own, and would be frozen with it; "
            "give a copy.deepcopy of the network as teacher"
        )
