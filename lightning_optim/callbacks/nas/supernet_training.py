"""Training of a supernet: the paths of each step, as its sampler has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer

from lightning_optim.callbacks.nas.architecture_step import ArchitectureStep
from lightning_optim.callbacks.nas.checks import check_averages
from lightning_optim.callbacks.nas.paths_step import PathsStep
from lightning_optim.callbacks.trainer.clock import FitProgress, clock_of
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.forward.mixture import mix
from lightning_optim.nas.sampler.base import Sampler, SamplerState
from lightning_optim.nas.sampler.learned import LearnedSampler, LearnedState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.select import submodule
from lightning_optim.window import Window


@final
class SupernetTraining:
    """Training of a supernet, in the hooks of a fit.

    Args:
        sampler: Which paths a step trains.
        seed: Seeds them.
        guard: Whether ranks compare the paths of each step.
    """

    def __init__(self, sampler: Sampler, seed: int, *, guard: bool) -> None:
        self.sampler, self._seed, self._guard = sampler, seed, guard
        self._progress = FitProgress(Window())
        self._supernet: Supernet | None = None
        self._state: SamplerState | None = None
        self._step: PathsStep | None = None
        self._counts: dict[str, list[int]] = {}
        self._learned = ArchitectureStep(sampler, seed, self._run) if isinstance(sampler, LearnedSampler) else None

    @property
    def has_trained(self) -> bool:
        """Whether any batch was trained on, in this fit or one that it continues."""
        return any(map(sum, self._counts.values()))

    def renew(self, decisions: Sequence[Decision]) -> None:
        """Let another supernet be trained from now on; what was loaded goes on.

        Args:
            decisions: What it decides.
        """
        self._supernet = self._state = None
        if self._learned is not None:
            self._learned.forget()
        fresh = {decision.name: [0] * len(decision.options) for decision in decisions}
        self._counts = {name: self._counts.get(name, counts) for name, counts in fresh.items()}

    def counts(self, decisions: Sequence[Decision]) -> dict[str, dict[str, int]]:
        """How many passes each option was trained with, where it mattered, by its text."""
        return {entry.name: dict(zip(entry.options, self._counts[entry.name], strict=True)) for entry in decisions}

    def picks(self, supernet: Supernet) -> list[Architecture]:
        """What was learned so far: the architecture that the parameters stand for; none where nothing is learned."""
        if self._learned is None:
            return []
        self.start(supernet)
        assert isinstance(self._state, LearnedState), "its sampler learns"
        return [self._state.parameters.pick()]

    def prepare(self, trainer: Trainer) -> None:
        """Have training samples held out where something is learned, in ``setup``.

        Raises:
            ValueError: If the sampler cannot be used under this strategy.
        """
        if self._learned is not None:
            self._learned.prepare(trainer)

    def start(self, supernet: Supernet) -> None:
        """Begin with a supernet, in ``on_fit_start``; one that was begun with goes on.

        Raises:
            ValueError: If the sampler cannot train this space.
        """
        if self._supernet is not supernet:
            self._supernet, self._state = supernet, self.sampler.start(supernet, self._seed)
        if self._learned is not None and isinstance(self._state, LearnedState):
            self._learned.start(self._state)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what the sampler needs of a fit, and wrap its step, in ``on_train_start``.

        Raises:
            ValueError: If the sampler cannot be used in this fit.
        """
        supernet, state = self._started
        check_averages(trainer, pl_module)
        if self.sampler.needs_progress:
            self._progress.check(trainer)
        if self._learned is not None:
            self._learned.begin(trainer, pl_module)
        elif len(state.paths(0, 0.0)) > 1:
            _check_several(trainer, pl_module, self.sampler)
            network = submodule(pl_module, supernet.site.network)
            self._step = PathsStep(self._run, state.temperature)
            self._step.attach(pl_module, supernet.site.network, network)

    def begin_batch(self, trainer: Trainer) -> None:
        """Make the supernet run the first path of the step, in ``on_train_batch_start``.

        Raises:
            RankMismatchError: If ranks would train other paths.
        """
        supernet, state = self._started
        step, progress = clock_of(trainer).step, self._progress.read(trainer) or 0.0
        if self._learned is not None and self._progress.enters_step(trainer):
            self._learned.take(trainer, trainer.lightning_module, step, progress)
        paths = state.paths(step, progress)
        if self._guard:
            check_ranks_agree(trainer, [path.architecture for path in paths], "the paths of this step")
            if isinstance(state, LearnedState):
                values = [value.tolist() for value in state.parameters.values.values()]
                check_ranks_agree(trainer, values, "the architecture parameters of this step")
        if self._step is not None:
            self._step.paths = paths
        self._run(paths[0])
        for path in paths:
            for decision in supernet.space.active(path.architecture):
                for option in path.options(decision.name):
                    self._counts[decision.name][option] += 1

    def release(self) -> None:
        """Take every patch and hook off; a second call does nothing."""
        if self._learned is not None:
            self._learned.release()
        step, self._step = self._step, None
        if step is not None:
            step.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the paths of the next steps depend on beside the trainer's counters."""
        counts = {name: list(counts) for name, counts in self._counts.items()}
        learned = {} if self._learned is None else self._learned.state_dict()
        return {"counts": counts, "progress": self._progress.state_dict(), "learned": learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            ValueError: If it counts other decisions.
        """
        saved = {name: len(counts) for name, counts in state["counts"].items()}
        here = {name: len(counts) for name, counts in self._counts.items()}
        if here and saved != here:
            raise ValueError(f"the checkpoint's supernet decides {saved}, this one {here}: give it the same space")
        self._counts = {name: [int(count) for count in counts] for name, counts in state["counts"].items()}
        self._progress.load_state_dict(state["progress"])
        if self._learned is not None:
            self._learned.load_state_dict(state["learned"])

    @property
    def _started(self) -> tuple[Supernet, SamplerState]:
        assert self._supernet is not None, "a fit begins with on_fit_start"
        assert self._state is not None, "as above"
        return self._supernet, self._state

    def _run(self, path: Path) -> None:
        supernet, _ = self._started
        supernet.activate(path.architecture)
        mix(supernet.site.root, path.mixtures)


def _check_several(trainer: Trainer, pl_module: LightningModule, sampler: Sampler) -> None:
    name = type(sampler).__name__
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"{name} trains several paths in one optimizer step, but under manual optimization a training step takes "
            "its steps itself; use automatic optimization, or UniformSampling"
        )
    if strategy_kind(trainer) is StrategyKind.SHARDED:
        raise ValueError(
            f"{name} trains several paths in one backward, for which {strategy_name(trainer)} would gather the weights "
            "of other paths; use DDPStrategy, or UniformSampling"
        )
