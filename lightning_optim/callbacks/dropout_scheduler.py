"""Regularization by dropout: what is dropped while a network trains, and how often, as training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.trainer.clock import FitProgress, clock_of
from lightning_optim.callbacks.trainer.lightning_private import is_compiled
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.checked import checked
from lightning_optim.regularization.dropout.base import DropoutMethod
from lightning_optim.regularization.dropout_settings import DropoutSettings
from lightning_optim.regularization.live_dropout import LiveDropout
from lightning_optim.regularization.step_draws import StepDraws
from lightning_optim.schedule.factor import Factor
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import Targets
from lightning_optim.window import Window


@final
@checked
class DropoutScheduler(TechniqueCallback):
    """Dropout by schedule: dropout, stochastic depth and DropBlock, of modules that are there or by path.

    ``PresentDropout`` sets the rates of the dropout modules that the network has; they are theirs again after the fit.
    The other methods drop from the output of any module that is named, in training steps alone; no module and no key of
    the state is added.

    What is drawn is a function of the seed, the number of the batch, the rank, the module and its call in the step: a
    resumed fit draws the same, and so does what a checkpoint runs again in the backward.

    The probability of each method is logged as ``regularization/<key>``.

    Args:
        dropout: One method, whose key is then its class name in snake case, or several by key.
        probability: Probability of every method, or of each by key, in ``[0, 1)``: numbers, or schedules over
            ``window``.
        targets: Modules of every method, or of each by key, by names relative to the LightningModule; ``None`` is every
            dropout module. Of modules in one another, the outputs of the outer ones are dropped.
        window: When to drop; before it opens nothing is changed. ``None`` is the whole fit.
        seed: Seeds what is drawn.
        name: Tells several instances in one Trainer apart: each needs a name of its own. Logs become
            ``regularization/<name>/<key>``.

    Raises:
        TypeError: If a value is of another kind.
        ValueError: If a value is out of range, keys differ, or it is not said where a method drops.

    Example:
        >>> from lightning_optim.regularization import StochasticDepth
        >>> from lightning_optim.schedule import Linear
        >>> branches = Targets(include=("net.blocks.*.branch",))
        >>> callback = DropoutScheduler(dropout=StochasticDepth(), probability=Linear(end=0.2), targets=branches)
        >>> callback.state_key
        "DropoutScheduler{'name': None}"
    """

    def __init__(
        self,
        *,
        dropout: DropoutMethod | Mapping[str, DropoutMethod],
        probability: Factor | Mapping[str, Factor],
        targets: Targets | Mapping[str, Targets] | None = None,
        window: Window | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._settings = DropoutSettings(dropout, probability, targets)
        self.dropout, self.probability = self._settings.methods, self._settings.probabilities
        self.targets, self.seed = self._settings.targets, seed
        self.window = Window() if window is None else window
        self._progress = FitProgress(self.window)
        self._draws = StepDraws("dropout", name or "", seed)
        self._patches = Patches()
        self._live = LiveDropout(self._settings, self._draws)

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.release()
        self._wrap(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wrap(trainer, pl_module)
        self._attach(pl_module)
        settings = (self._settings, self.window, self.seed)
        check_ranks_agree(trainer, settings, "the settings of DropoutScheduler")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress.check(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"progress": self._progress.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._progress.load_state_dict(state_dict["progress"])

    @override
    def release(self) -> None:
        self._patches.undo()
        self._live.remove()

    def _wrap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the step below what others have wrapped: one that runs it twice finds the same draws in both runs."""
        self._patches.undo()
        self._patches.wrap_innermost(pl_module, "training_step", partial(self._training_step, trainer, pl_module))

    def _attach(self, pl_module: LightningModule) -> None:
        """Find the modules, once every callback has set its own structure up."""
        self._live.attach(pl_module, pl_module.device, is_compiled=is_compiled(pl_module))

    def _training_step(
        self, trainer: Trainer, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        # Lightning's learning-rate finder trains before this callback's on_fit_start.
        self._attach(pl_module)
        progress = self._progress.read(trainer)
        if progress is None:
            return original(*args, **kwargs)
        for key, probability in self._live.set_rates(progress).items():
            pl_module.log(self.metric("regularization", key), probability)
        with self._draws.step(clock_of(trainer).batch, pl_module.global_rank):
            output = original(*args, **kwargs)
        if output is not None or not pl_module.automatic_optimization:
            self._live.check_called()  # a step without a loss may have called nothing
        return output
