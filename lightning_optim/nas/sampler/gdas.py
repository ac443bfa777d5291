"""Search by sampled paths (GDAS): one option at a time, drawn with Gumbel noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.forward.mixture import Mixture
from lightning_optim.nas.sampler.architecture_parameters import ArchitectureSteps
from lightning_optim.nas.sampler.expected_cost import ExpectedCost
from lightning_optim.nas.sampler.learned import LearnedSampler, LearnedState, check_temperature, gumbel
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.linear import Linear


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class GDAS(LearnedSampler):
    """Differentiable sampling of paths (GDAS; Dong and Yang, 2019; arXiv:1910.04465, equations 3 to 5).

    With Gumbel noise ``g``, ``p = softmax((log softmax(alpha) + g) / T)``, and the option of the largest ``p`` alone
    runs: a step costs about as much as that of two plain networks, one for the weights and one for ``alpha``. Its
    output is multiplied by ``1 - p + p``, of which the last ``p`` has a gradient.

    Args:
        steps: Steps of the architecture parameters.
        temperature: ``T`` over the progress of the fit, above 0.
        auxiliary_skip: Weight of a skip connection beside the options over the progress of the fit, where input and
            output have one shape, against a preference for skip connections (arXiv:2009.01027); ``None`` has none.
        cost: Expected cost that is added to the loss of the architecture steps; ``None`` adds nothing.

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> GDAS().temperature(0.0)
        10.0
    """

    steps: ArchitectureSteps = field(default_factory=ArchitectureSteps)
    temperature: Schedule = field(default_factory=lambda: Linear(start=10.0, end=0.1))
    auxiliary_skip: Schedule | None = None
    cost: ExpectedCost | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @override
    def start(self, supernet: Supernet, seed: int) -> GDASState:
        return GDASState(supernet, seed, self)


@final
class GDASState(LearnedState):
    """GDAS in one supernet."""

    def __init__(self, supernet: Supernet, seed: int, setting: GDAS) -> None:
        super().__init__(supernet, seed, setting)
        self._setting = setting

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        with torch.no_grad():
            names = self.parameters.values
            drawn = {name: int(self._noisy(step, "weights", name, progress).argmax()) for name in names}
        return (self.single(drawn, progress),)

    @override
    def architecture_path(self, step: int, progress: float) -> Path:
        mixtures, chosen = {}, {}
        for name in self.parameters.values:
            probabilities = self._noisy(step, "architecture", name, progress)
            chosen[name] = option = int(probabilities.argmax())
            hard = 1.0 - probabilities[option].detach() + probabilities[option]
            mixtures[name] = Mixture(weights={option: hard}, skip=self.skip_weight(progress))
        return Path(architecture=chosen, mixtures=mixtures)

    def _noisy(self, step: int, what: str, name: str, progress: float) -> Tensor:
        values, draw = self.parameters.values[name], self.draw(step, what, name)
        noise = values.new_tensor([gumbel(draw) for _ in range(values.numel())])
        return ((values.log_softmax(0) + noise) / self._setting.temperature(progress)).softmax(0)
