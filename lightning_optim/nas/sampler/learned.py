"""Samplers with architecture parameters: a gradient on held-out batches says which options are better."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_optim.nas.forward.mixture import Mixture, mixed_forwards
from lightning_optim.nas.sampler.architecture_parameters import ArchitectureParameters, ArchitectureSteps
from lightning_optim.nas.sampler.base import Sampler, SamplerState
from lightning_optim.nas.sampler.expected_cost import ExpectedCost, OptionCosts
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.schedule.base import Schedule


class LearnedSampler(Sampler):
    """Sampler with architecture parameters.

    Attributes:
        needs_progress: Schedules follow the fit's progress.
        betas: Of Adam for the architecture parameters.
        steps: How the architecture parameters are trained.
        auxiliary_skip: Weight, over the progress of the fit, of a skip connection beside all options.
        cost: What is added to the loss of their steps.
    """

    needs_progress: ClassVar[bool] = True
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)

    steps: ArchitectureSteps
    auxiliary_skip: Schedule | None
    cost: ExpectedCost | None

    @abstractmethod
    @override
    def start(self, supernet: Supernet, seed: int) -> LearnedState: ...


class LearnedState(SamplerState):
    """Architecture parameters of one supernet, and the paths that they lead to.

    Args:
        supernet: The supernet; each of its decisions must be one that can be mixed.
        seed: Seeds the parameters and what is drawn.
        sampler: The setting.

    Raises:
        ValueError: If a decision is not one among operations.
    """

    def __init__(self, supernet: Supernet, seed: int, sampler: LearnedSampler) -> None:
        can_mix = mixed_forwards(supernet.site.root)
        fixed = [decision.name for decision in supernet.decisions if decision.name not in can_mix]
        if fixed:
            raise ValueError(
                f"{type(sampler).__name__} mixes the outputs of operations, which cannot be done for "
                f"{', '.join(map(repr, fixed))}: leave them out of this space, or take a sampler of plain paths, such "
                "as FairNAS"
            )
        self._space, self._seed, self._sampler = supernet.space, seed, sampler
        self.parameters = ArchitectureParameters(supernet.space, seed)
        self.costs: OptionCosts | None = None if sampler.cost is None else sampler.cost.measure(supernet)

    @abstractmethod
    def architecture_path(self, step: int, progress: float) -> Path:
        """The path of an architecture step, through which gradients reach the architecture parameters."""

    def settle(self, step: int, before: Mapping[str, Tensor]) -> None:  # a hook, most have nothing to do
        """Finish an architecture step, once the optimizer has moved the parameters.

        Args:
            step: Number of optimizer steps that are done.
            before: The parameters before it, by decision.
        """

    def cost_term(self) -> Tensor | None:
        """The expected cost's part of the loss; ``None`` if costs do not count."""
        cost = self._sampler.cost
        if cost is None or self.costs is None:
            return None
        return cost.term(self.costs, {name: self.parameters.probabilities(name) for name in self.parameters.values})

    def skip_weight(self, progress: float) -> float:
        """Weight of the auxiliary skip connection."""
        return 0.0 if self._sampler.auxiliary_skip is None else self._sampler.auxiliary_skip(progress)

    def single(self, chosen: Mapping[str, int], progress: float) -> Path:
        """A plain path, with the auxiliary skip connection while it has a weight."""
        skip = self.skip_weight(progress)
        values = self.parameters.values
        mixtures = {name: Mixture(weights={option: values[name].new_ones(())}, skip=skip)
                    for name, option in chosen.items()} if skip else {}  # fmt: skip
        return Path(architecture=self._space.canonical(chosen), mixtures=mixtures)

    def draw(self, step: int, what: str, decision: str) -> random.Random:
        """Random numbers of one decision in one step: a function of the seed and of these."""
        return random.Random(f"{self._seed}/{step}/{what}/{decision}")


def gumbel(draw: random.Random) -> float:
    """A number of the standard Gumbel distribution."""
    return -math.log(-math.log(max(draw.random(), 1e-300)) or 1e-300)


def check_temperature(temperature: Schedule) -> None:
    """Refuse a temperature that is not above 0 at either end of the fit.

    Raises:
        ValueError: Saying so.
    """
    ends = temperature(0.0), temperature(1.0)
    if not all(end > 0.0 for end in ends):
        raise ValueError(f"temperature must be above 0, got {ends[0]:g} at the start and {ends[1]:g} at the end")
