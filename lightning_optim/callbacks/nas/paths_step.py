"""Training step over several paths of a supernet: one forward and one loss for each, one backward, one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_optim.callbacks.trainer.silent_repeats import silence_repeats
from lightning_optim.callbacks.trainer.step_output import loss_of, with_loss
from lightning_optim.errors import TapError
from lightning_optim.nas.functional import soft_target_loss
from lightning_optim.nas.sampler.path import Path
from lightning_optim.surgery.calls import NetworkCalls
from lightning_optim.surgery.passes import repeating
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import checkpoints_followed


@final
class PathsStep:
    """Training step over several paths; the step's loss is the mean of theirs.

    The user's ``training_step`` runs once a path, within one call of the strategy: data parallelism sees one forward
    and one backward. What is logged, printed and recorded is the first path's. A step of one path is left as it is.

    Args:
        run: Makes the supernet run a path.
        temperature: At this temperature the outputs of the first path are what the others learn; ``None`` trains each
            on its own loss.
    """

    def __init__(self, run: Callable[[Path], None], temperature: float | None) -> None:
        self._run, self._temperature = run, temperature
        self._patches, self._calls = Patches(), NetworkCalls()
        self.paths: Sequence[Path] = ()

    def attach(self, pl_module: LightningModule, name: str, network: nn.Module) -> None:
        """Wrap the module's step, outside of all that other callbacks have wrapped around it.

        Args:
            pl_module: The module.
            name: Name of the network in it.
            network: The network, whose outputs are distilled.
        """
        self.detach()
        self._patches.wrap(pl_module, "training_step", self._training_step)
        silence_repeats(self._patches, pl_module)
        if self._temperature is not None:
            self._calls.attach(pl_module, name, network)

    def detach(self) -> None:
        """Take every patch and hook off; a second call does nothing."""
        self._patches.undo()
        self._calls.remove()
        self.paths = ()

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if len(self.paths) < 2:
            return original(*args, **kwargs)
        first, losses, targets = None, [], None
        for number, path in enumerate(self.paths):
            with repeating() if number else nullcontext():
                output, logits = self._pass(path, partial(original, *args, **kwargs))
            loss = loss_of(output)
            if number == 0:
                first, targets = output, logits
            if loss is not None and number > 0 and logits is not None and targets is not None:
                loss = soft_target_loss(logits.float(), targets.float(), self._temperature or 1.0)
            losses += [] if loss is None else [loss]
        return with_loss(first, torch.stack(losses).mean()) if loss_of(first) is not None else first

    def _pass(self, path: Path, step: Callable[[], Any]) -> tuple[Any, Tensor | None]:
        """Run the step on one path; what is checkpointed in it finds the path again in the backward."""
        with ExitStack() as stack:
            stack.enter_context(checkpoints_followed(partial(self._again, path)))
            self._run(path)
            if self._temperature is None:
                return step(), None
            self._calls.open()
            stack.callback(self._calls.close)
            output = step()
            return output, None if loss_of(output) is None else _logits(self._calls)

    def _again(self, path: Path, function: Callable[..., Any], *_: object) -> Callable[..., Any]:
        def run_again(*args: Any, **kwargs: Any) -> Any:
            self._run(path)
            return function(*args, **kwargs)

        return run_again


def _logits(calls: NetworkCalls) -> Tensor:
    outputs = [call.output for call in calls.take()]
    if len(outputs) > 1:
        raise TapError(
            f"in-place distillation compares what the network returns, and a training step calls it {len(outputs)} "
            "times; set the sampler's temperature to None to train every path on the labels"
        )
    logits = outputs[0]
    if isinstance(logits, Tensor) and logits.dim() >= 2 and logits.is_floating_point():
        return logits
    shown = f"a tensor of shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise TapError(
        f"in-place distillation needs a network that returns logits, classes in dimension 1, got {shown}; set the "
        "sampler's temperature to None to train every path on the labels"
    )
