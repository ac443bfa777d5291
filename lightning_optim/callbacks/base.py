"""Interface of the callbacks of this package: how one is named, prepared and released."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.surgery.passes import is_repeating
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.shrunk_checkpoint import remove_mark


class TechniqueCallback(Callback, ABC):
    """Callback of one technique.

    A subclass keeps its settings as public attributes, checks and prepares in ``prepare`` and takes everything off
    again in ``release``. It may define any other hook of Lightning.

    Args:
        name: Tells several instances in one Trainer apart.

    Example:
        >>> class Watcher(TechniqueCallback):
        ...     def prepare(self, trainer, pl_module, stage): ...
        ...     def release(self): ...
        >>> Watcher(name="first").state_key
        "Watcher{'name': 'first'}"
    """

    repeats_steps: ClassVar[bool] = False
    """Whether it runs the user's training step several times for one batch."""

    def __init__(self, *, name: str | None) -> None:
        self.name = name
        self._loading = Patches()
        self._terms: dict[str, Tensor] = {}

    @abstractmethod
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set up for a stage of the trainer, in its hook ``setup``; refuse a wrong setting before anything changes.

        Args:
            trainer: The trainer.
            pl_module: The module, on the CPU and without its checkpoint.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    @abstractmethod
    def release(self) -> None:
        """Take every patch and hook off, at the end of a stage or after an exception; a second call does nothing."""

    @property
    @final
    @override
    def state_key(self) -> str:
        return f"{type(self).__qualname__}{{'name': {self.name!r}}}"

    @final
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._check_name(trainer)
        self._loading.undo()
        self._loading.wrap(pl_module, "on_load_checkpoint", _load_without_mark)
        self.prepare(trainer, pl_module, stage)

    @final
    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.release()
        self._loading.undo()

    @final
    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == TrainerFn.FITTING:
            self.stopped(trainer)
        elif isinstance(exception, (RuntimeError, ValueError)):
            self.failed(pl_module, str(exception))
        self.release()
        self._loading.undo()

    def failed(self, pl_module: LightningModule, error: str) -> None:  # as below
        """Say what may have made a stage fail; nothing by default.

        Args:
            pl_module: The module.
            error: The text of the error.
        """
        self._loading.undo()

    def stopped(self, trainer: Trainer) -> None:  # a hook, not every technique has something to say
        """Say what a fit that was interrupted leaves undone; nothing by default.

        Args:
            trainer: The trainer.
        """
        self._loading.undo()

    def masks(self) -> Mapping[nn.Parameter, Tensor]:
        """What this technique holds at zero, for another one that moves weights; nothing by default.

        Returns:
            Parameter -> its mask: 0 where it is held at zero, else 1.
        """
        return {}

    @final
    def metric(self, technique: str, noun: str) -> str:
        """Return the key under which this instance logs: ``<technique>/<noun>``, the name in between if it has one."""
        return f"{technique}/{noun}" if self.name is None else f"{technique}/{self.name}/{noun}"

    @final
    def log_terms(self, pl_module: LightningModule, technique: str, terms: Mapping[str, Tensor]) -> None:
        """Log terms of the loss of a training step, and keep them for ``take_terms``.

        Args:
            pl_module: The module that takes the step.
            technique: Begins the names of the logs.
            terms: The terms by key, each before it is multiplied by its weight.
        """
        for key, value in terms.items():
            name, logged = self.metric(technique, key), value.detach()
            pl_module.log(name, logged)
            if not is_repeating():
                self._terms[name] = logged.clone()

    @final
    def take_terms(self) -> dict[str, Tensor]:
        """Return what ``log_terms`` has logged since the last call, by the names of the logs."""
        terms, self._terms = self._terms, {}
        return terms

    @final
    def repeating_beside(self, trainer: Trainer) -> list[str]:
        """Return the names of the callbacks beside this one that run the training step several times for one batch.

        Args:
            trainer: The trainer.
        """
        others: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        ours = (each for each in others if isinstance(each, TechniqueCallback) and each is not self)
        return [type(each).__name__ for each in ours if each.repeats_steps]

    def _check_name(self, trainer: Trainer) -> None:
        # Lightning refuses two of a class by itself, but only if they have a state.
        others: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        if sum(other.state_key == self.state_key for other in others) > 1:
            raise ValueError(
                f"two {type(self).__name__} have the name {self.name!r} and could not be told apart; "
                "give each a name of its own"
            )


def _load_without_mark(original: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
    """The one hook between a file and its weights: here the mark of a shrunk file is removed."""
    remove_mark(checkpoint)
    original(checkpoint)
