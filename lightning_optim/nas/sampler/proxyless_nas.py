"""Search by binary gates (ProxylessNAS): one option at a time, compared with one other."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.forward.mixture import Mixture
from lightning_optim.nas.sampler.architecture_parameters import ArchitectureSteps
from lightning_optim.nas.sampler.expected_cost import ExpectedCost
from lightning_optim.nas.sampler.learned import LearnedSampler, LearnedState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ProxylessNAS(LearnedSampler):
    """Search by binary gates (ProxylessNAS; Cai et al., 2019; arXiv:1812.00332, equations 3 and 4, section 3.2.1).

    Weights are trained on one path a step, drawn by the probabilities ``softmax(alpha)``. An architecture step draws
    two options of each choice, of which one gate is open: ``dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)`` with the
    probabilities ``p`` among the two, where ``dL/dg_j`` is the loss's gradient times what option ``j`` returns.
    Afterwards both are shifted so that the probabilities of all other options are what they were.

    Args:
        steps: Steps of the architecture parameters; a weight decay would move options that were not drawn.
        auxiliary_skip: Weight of a skip connection beside the options over the progress of the fit, where input and
            output have one shape, against a preference for skip connections (arXiv:2009.01027); ``None`` has none.
        cost: Expected cost that is added to the loss of the architecture steps; ``None`` adds nothing.

    Raises:
        ValueError: If there is a weight decay.

    Example:
        >>> ProxylessNAS().steps.weight_decay
        0.0
    """

    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)  # momentum would move options that were not drawn

    steps: ArchitectureSteps = field(default_factory=lambda: ArchitectureSteps(weight_decay=0.0))
    auxiliary_skip: Schedule | None = None
    cost: ExpectedCost | None = None

    def __post_init__(self) -> None:
        if self.steps.weight_decay:
            raise ValueError(
                f"ProxylessNAS moves the two options that were drawn, and a weight decay moves them all: set "
                f"steps.weight_decay to 0, got {self.steps.weight_decay}"
            )

    @override
    def start(self, supernet: Supernet, seed: int) -> ProxylessState:
        return ProxylessState(supernet, seed, self)


@final
class ProxylessState(LearnedState):
    """ProxylessNAS in one supernet."""

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        drawn = {name: _drawn(self.draw(step, "weights", name), self._shares(name), 1)[0]
                 for name in self.parameters.values}  # fmt: skip
        return (self.single(drawn, progress),)

    @override
    def architecture_path(self, step: int, progress: float) -> Path:
        mixtures, chosen = {}, {}
        for name, values in self.parameters.values.items():
            pair = self._pair(step, name, values.detach())
            among = values[list(pair)].softmax(0)
            is_first = len(pair) < 2 or self.draw(step, "gate", name).random() < float(among.detach()[0])
            gates = among - among.detach() + among.new_tensor([float(is_first), float(not is_first)][: len(pair)])
            chosen[name] = pair[0 if is_first else 1]
            weights = dict(zip(pair, gates, strict=True))
            mixtures[name] = Mixture(weights=weights, skip=self.skip_weight(progress))
        return Path(architecture=chosen, mixtures=mixtures)

    @override
    @torch.no_grad()
    def settle(self, step: int, before: Mapping[str, Tensor]) -> None:
        for name, values in self.parameters.values.items():
            pair = list(self._pair(step, name, before[name]))
            values[pair] += before[name][pair].logsumexp(0) - values[pair].logsumexp(0)

    def _pair(self, step: int, name: str, values: Tensor) -> tuple[int, ...]:
        shares = values.softmax(0).tolist()
        return _drawn(self.draw(step, "architecture", name), shares, min(2, len(shares)))

    def _shares(self, name: str) -> list[float]:
        shares: list[float] = self.parameters.probabilities(name).tolist()
        return shares


def _drawn(draw: random.Random, shares: list[float], count: int) -> tuple[int, ...]:
    """Draw options by their shares, each at most once."""
    left, found = dict(enumerate(shares)), []
    for _ in range(count):
        found.append(draw.choices(list(left), [share + 1e-12 for share in left.values()])[0])
        del left[found[-1]]
    return tuple(found)
