"""Differentiable architecture search (DARTS): all options at once, weighted by a softmax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.forward.mixture import Mixture
from lightning_optim.nas.sampler.architecture_parameters import ArchitectureSteps
from lightning_optim.nas.sampler.expected_cost import ExpectedCost
from lightning_optim.nas.sampler.learned import LearnedSampler, LearnedState, check_temperature
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.constant import Constant
from lightning_optim.schedule.linear import Linear


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class DARTS(LearnedSampler):
    """Differentiable architecture search (DARTS), first order (Liu et al., 2019; arXiv:1806.09055, equations 2 and 7).

    A choice returns ``sum_i softmax(alpha / T)_i o_i(x)``. Each step takes the gradient of the loss of a held-out batch
    for ``alpha``, then that of a training batch for the weights. All operations run, and stay in memory, so a step
    costs as much as they do together; take ``GDAS`` where that is too much.

    Left alone, DARTS ends in skip connections, which help unfinished weights most. The auxiliary skip connection takes
    that advantage away from the choice (DARTS-; Chu et al., 2021; arXiv:2009.01027, equation 7): it stands beside the
    options, where input and output have one shape, and fades.

    Args:
        steps: Steps of the architecture parameters.
        temperature: ``T`` over the progress of the fit, above 0.
        auxiliary_skip: Weight of the auxiliary skip connection over the progress of the fit; ``None`` has none.
        cost: Expected cost that is added to the loss of the architecture steps; ``None`` adds nothing.

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> DARTS(auxiliary_skip=None).temperature(0.5)
        1.0
    """

    steps: ArchitectureSteps = field(default_factory=ArchitectureSteps)
    temperature: Schedule = field(default_factory=lambda: Constant(value=1.0))
    auxiliary_skip: Schedule | None = field(default_factory=lambda: Linear(start=1.0, end=0.0))
    cost: ExpectedCost | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @override
    def start(self, supernet: Supernet, seed: int) -> DARTSState:
        return DARTSState(supernet, seed, self)


@final
class DARTSState(LearnedState):
    """DARTS in one supernet."""

    def __init__(self, supernet: Supernet, seed: int, setting: DARTS) -> None:
        super().__init__(supernet, seed, setting)
        self._setting = setting

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        return (self._mixed(progress, learns=False),)

    @override
    def architecture_path(self, step: int, progress: float) -> Path:
        return self._mixed(progress, learns=True)

    def _mixed(self, progress: float, *, learns: bool) -> Path:
        temperature, skip = self._setting.temperature(progress), self.skip_weight(progress)
        mixtures = {}
        for name in self.parameters.values:
            weights = self.parameters.probabilities(name, temperature)
            mixtures[name] = Mixture(weights=dict(enumerate(weights if learns else weights.detach())), skip=skip)
        return Path(architecture=self.parameters.pick(), mixtures=mixtures)
