"""Step of mutual learning: the training step runs once more, with the peer in place of the student's network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_optim.callbacks.distillation.learned import LearnedParts
from lightning_optim.callbacks.trainer.lightning_private import is_compiled
from lightning_optim.callbacks.trainer.silent_run import SilentRun
from lightning_optim.callbacks.trainer.step_output import loss_of
from lightning_optim.distillation.loss.base import Loss
from lightning_optim.distillation.loss.output import OutputLoss
from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.teacher.peer import LoadedPeer, MakeOptimizer
from lightning_optim.errors import TapError
from lightning_optim.surgery.containers import map_tensors
from lightning_optim.surgery.generator_state import GeneratorState
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import call_wrapped, checkpoints_followed

_KEY = "peer"


@final
@dataclass(frozen=True, slots=True)
class PeerStep:
    """What the peer makes of a batch.

    Args:
        loss: Its own loss of the task.
        calls: Its calls, in the order of the student's.
    """

    loss: Tensor
    calls: list[Recording]


@final
@dataclass(frozen=True, slots=True)
class _Step:
    """A training step of the user's, that can run once more, and the random numbers that it begins with."""

    run: Callable[[], Any]
    numbers: GeneratorState


@final
class MutualStep:
    """Training of a peer beside the student.

    Args:
        peer: The peer.
        make_optimizer: Makes its optimizer.
    """

    def __init__(self, peer: LoadedPeer, make_optimizer: MakeOptimizer) -> None:
        self._peer, self._make_optimizer = peer, make_optimizer
        self._parts, self._silence, self._patches = LearnedParts(), SilentRun(), Patches()
        self._step: _Step | None = None

    def attach(self, trainer: Trainer, pl_module: LightningModule, beside: Sequence[str]) -> None:
        """Take note of each training step of the user's own, below what callbacks add to it.

        Args:
            trainer: The trainer.
            pl_module: The module.
            beside: Callbacks that run the training step several times themselves.

        Raises:
            ValueError: If the step cannot run twice.
        """
        _check_step(pl_module, beside)
        self.detach()
        self._parts = LearnedParts()
        self._patches.wrap_innermost(pl_module, "training_step", partial(self._remember, trainer))

    def start(self, device: torch.device) -> None:
        """Train the peer from here on, once it lies where the student does."""
        self._parts.start({_KEY: (self._peer.module, self._make_optimizer)}, device)

    @property
    def parts(self) -> LearnedParts:
        """The peer's weights, statistics and optimizer."""
        return self._parts

    def detach(self) -> None:
        """Let go of the module; a second call does nothing."""
        self._patches.undo()
        self._silence.release()
        self._step = None

    def run(self, pl_module: LightningModule, network: nn.Module) -> PeerStep:
        """Run the step that has just run once more, silently, with the peer in place of the network.

        Random numbers begin as in the student's run, and go on afterwards as if there had been none but that.

        Raises:
            TapError: If it gives no loss, or calls the network in parts.
        """
        step, calls = self._step, list[Recording]()
        assert step is not None
        after = GeneratorState.of(pl_module.device)
        step.numbers.restore()
        self._peer.module.train()
        try:
            with (
                self._silence.of(pl_module),
                self._in_place_of(network, pl_module, calls),
                # Activations that are checkpointed are the peer's when the backward computes them again.
                checkpoints_followed(partial(self._again, network, pl_module)),
            ):
                loss = loss_of(step.run())
        finally:
            after.restore()
        if loss is None or not calls:
            raise TapError("a peer learns from the training step's loss: return one, and call the network as a module")
        return PeerStep(loss, calls)

    def _in_place_of(self, network: nn.Module, pl_module: LightningModule, calls: list[Recording]) -> ExitStack:
        def answer(_: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = self._peer.run(*args, **kwargs)
            if not torch.is_grad_enabled():
                raise TapError(
                    "training_step calls the network without gradient, or inside a reentrant checkpoint, where a peer "
                    "cannot learn: call torch.utils.checkpoint.checkpoint with use_reentrant=False"
                )
            calls.append(Recording(ModuleCall(args, kwargs, output)))
            return output

        stack, patches = ExitStack(), Patches()
        stack.enter_context(call_wrapped(network, answer))
        if network is pl_module:  # whose forward a step may call by name
            patches.wrap(network, "forward", answer)
            stack.callback(patches.undo)
        return stack

    def _again(
        self, network: nn.Module, pl_module: LightningModule, function: Callable[..., Any], *_: object
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._in_place_of(network, pl_module, []):
                return function(*args, **kwargs)

        return run

    def _remember(self, trainer: Trainer, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._step = _Step(partial(original, *args, **kwargs), GeneratorState.of(trainer.strategy.root_device))
        return original(*args, **kwargs)


def check_losses(losses: Mapping[str, Loss], *, has_cache: bool, initializes: bool) -> None:
    """Refuse settings that a peer has no use for, before anything has changed.

    Args:
        losses: The losses by key.
        has_cache: Whether answers are kept.
        initializes: Whether the student begins as layers of the teacher.

    Raises:
        ValueError: Naming what it is.
    """
    if has_cache or initializes:
        what = "cache keeps answers, and a peer's change" if has_cache else "initialize_from makes the two students one"
        raise ValueError(f"{what}: leave it out beside a Peer")
    for key, loss in losses.items():
        if not isinstance(loss, OutputLoss) or loss.teacher_output is not None:
            raise ValueError(
                f"a Peer and the student learn from each other's outputs, and loss {key!r} ({type(loss).__name__}) "
                "is not alike for both: take losses on outputs, such as SoftTarget, without teacher_output"
            )


def both_ways(
    student: list[Recording], peer: list[Recording]
) -> tuple[list[tuple[Recording, Recording]], list[tuple[Recording, Recording]]]:
    """Calls of both in pairs: for the student with the peer's as constants, for the peer the other way.

    Raises:
        TapError: If one has called the network more often.
    """
    if len(student) != len(peer):
        raise TapError(f"training_step called the student {len(student)} times and its peer {len(peer)} times")
    pairs = list(zip(student, peer, strict=True))
    return [(mine, _constant(other)) for mine, other in pairs], [(other, _constant(mine)) for mine, other in pairs]


def _constant(recording: Recording) -> Recording:
    call = recording.call
    return Recording(ModuleCall(call.args, call.kwargs, map_tensors(Tensor.detach, call.output)))


def _check_step(pl_module: LightningModule, beside: Sequence[str]) -> None:
    if beside:
        raise ValueError(f"{beside[0]} runs the training step in a way of its own, and so does a Peer: use one of them")
    if not pl_module.automatic_optimization or is_compiled(pl_module):
        what = (
            "under manual optimization has stepped by then" if not pl_module.automatic_optimization else "is compiled"
        )
        raise ValueError(
            f"a Peer runs the training step twice, which {what}: use automatic optimization, and compile the network "
            "in place of the LightningModule"
        )
