"""A training step on a mixed batch: with either label and one forward pass, or with labels as probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lightning_optim.callbacks.trainer.silent_run import SilentRun
from lightning_optim.callbacks.trainer.step_output import loss_of, with_loss
from lightning_optim.errors import LightningOptimError, SampleError, reason_of
from lightning_optim.regularization.functional import mix_samples
from lightning_optim.regularization.mixed_batch import MixedBatch
from lightning_optim.regularization.mixing.base import Mixing
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.replay import NetworkReplay
from lightning_optim.surgery.shard import local

Step = Callable[[Any], Any]
"""Runs the user's training step on a batch."""


class _Answered(BaseException):
    """Ends a run whose network has answered; no error of the user's, so that nobody's handler takes it."""


@final
class MixedStep:
    """Runs of one module's training step on mixed batches.

    Args:
        pl_module: The module.
        network: Its network.
    """

    def __init__(self, pl_module: LightningModule, network: nn.Module) -> None:
        self._pl_module, self._network = pl_module, network
        self._silence = SilentRun()
        self._is_proven = self._takes_float_labels = False
        self.num_classes: int | None = None

    def with_both_labels(self, step: Step, mixed: MixedBatch) -> Any:
        """Run the step with the samples' own labels, then silently with their partners', and mix the losses.

        Args:
            step: The step.
            mixed: The batch.

        Returns:
            What the first run returns, with the mixed loss.

        Raises:
            SampleError: If the network is given labels, or a run changes what the next one finds.
            TapError: If the step does not call the network, or cannot run twice with one forward pass.
        """
        replay, checks = self._replay(), not self._is_proven
        with replay.first(compares=checks):
            output = step(mixed.with_own_labels())
        own = loss_of(output)
        if own is None:
            return output
        replay.check_called()
        before = self._fingerprints() if checks else {}
        with replay.second(), self._silence.of(self._pl_module):
            other = loss_of(step(mixed.with_partners_labels()))
        if other is None:
            raise SampleError("training_step returned a loss with the first labels and none with the second")
        if checks:
            self._check(replay, before)
            self._is_proven = mixed.labels_differ
        return with_loss(output, mix_samples(own, other, mixed.weight))

    def with_float_labels(self, step: Step, mixed: MixedBatch, mixings: tuple[Mixing, ...]) -> Any:
        """Run the step with labels as probabilities.

        Args:
            step: The step.
            mixed: The batch.
            mixings: What changes labels before they are mixed.

        Raises:
            SampleError: In the first batch, if the step does not take such labels.
        """
        if self.num_classes is None:
            return self._after_finding_classes(step, mixed, mixings)
        batch = mixed.with_float_labels(self.num_classes, mixings)
        if self._takes_float_labels:
            return step(batch)
        try:
            output = step(batch)
        except (LightningOptimError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, NotImplementedError) as error:
            raise SampleError(
                f"{type(self._pl_module).__name__}.training_step does not take the labels as probabilities "
                f"[B, {self.num_classes}], with which it fails: {reason_of(error)}; let it take them, as "
                "F.cross_entropy does, or set labels='mix_loss'"
            ) from error
        self._takes_float_labels = True
        return output

    def release(self) -> None:
        """Let go of what the runs have kept."""
        self._silence.release()

    def _replay(self) -> NetworkReplay:
        is_root = self._network is self._pl_module
        return NetworkReplay(self._network, is_root=is_root, device=self._pl_module.device)

    def _after_finding_classes(self, step: Step, mixed: MixedBatch, mixings: tuple[Mixing, ...]) -> Any:
        """Run the step up to the network's first answer, which tells the classes, and anew from there."""
        replay = self._replay()
        silent = self._silence.of(self._pl_module, puts_back=False)
        with suppress(_Answered), silent, replay.first(ends=_Answered()):
            output = step(mixed.with_own_labels())
            if loss_of(output) is None:  # a step without the network's answer, which skips the batch
                return output
        replay.check_called()
        found = [each for each in tensors_of(replay.outputs[0]) if each.is_floating_point() and each.ndim > 1]
        if len(found) != 1:
            raise SampleError(
                f"the number of classes is not clear, as the network returns {len(found)} tensors [B, C, ...]: set "
                "num_classes"
            )
        self.num_classes = found[0].shape[1]
        with replay.second():
            return self.with_float_labels(step, mixed, mixings)

    def _fingerprints(self) -> dict[str, tuple[float, ...]]:
        """What tells that a run has changed a parameter or a buffer."""
        named = {**dict(self._pl_module.named_parameters()), **dict(self._pl_module.named_buffers())}
        lazy = (UninitializedParameter, UninitializedBuffer)
        return {name: _fingerprint(tensor) for name, tensor in named.items() if not isinstance(tensor, lazy)}

    def _check(self, replay: NetworkReplay, before: Mapping[str, tuple[float, ...]]) -> None:
        if replay.inputs_differ:
            raise SampleError(
                "labels that cannot be mixed: the network is given something that depends on them, so that its output "
                "holds for the first ones alone; call it without labels, and compute the loss in training_step"
            )
        now = self._fingerprints()
        changed = next((name for name, value in before.items() if repr(now[name]) != repr(value)), None)
        if changed is not None:
            raise SampleError(
                f"{changed!r} changes each time that training_step runs, which it does twice under labels='mix_loss': "
                "change it in another hook (on_train_batch_end), set network to a module whose forward does it, or set "
                "labels='soft'"
            )


def _fingerprint(tensor: Tensor) -> tuple[float, ...]:
    own = local(tensor.detach())
    values = torch.view_as_real(own) if own.is_complex() else own
    total = float(values.sum(dtype=torch.float64))
    return (total, float(torch.linalg.vector_norm(values.double()))) if values.numel() else (total,)
