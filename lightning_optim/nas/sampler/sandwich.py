"""Sandwich rule: the largest path, the smallest one and random ones in each step."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.macs import MACs
from lightning_optim.nas.sampler.base import Sampler, SamplerState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Sandwich(Sampler):
    """Sandwich rule: the largest path, the smallest one and random ones in between, with in-place distillation.

    By Yu and Huang (2019; arXiv:1903.05134, sections 3.1 and 3.2) and, in a supernet, Yu et al. (2020, BigNAS;
    arXiv:2003.11142). For spaces of widths, depths and kernel sizes. The largest path learns from the labels; the
    others learn from its outputs ``z`` alone: ``-sum_c softmax(z / T)_c log softmax(y / T)_c * T**2``, without a
    gradient through ``z``. What other callbacks add to the loss then acts on the largest path. Large and small are
    meant in MACs, found deciding one thing at a time.

    Args:
        random_paths: Random paths in each step beside the largest and the smallest, at least 0.
        temperature: Softens the distilled outputs, above 0; the network must return logits, classes in dimension 1.
            ``None`` does not distil: all paths learn from the labels.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> Sandwich(random_paths=1, temperature=None)
        Sandwich(random_paths=1, temperature=None)
    """

    random_paths: int = 2
    temperature: float | None = 1.0

    def __post_init__(self) -> None:
        if self.random_paths < 0:
            raise ValueError(f"random_paths must be at least 0, got {self.random_paths}")
        if self.temperature is not None and not self.temperature > 0.0:
            raise ValueError(f"temperature must be above 0, or None for no distillation, got {self.temperature}")

    @override
    def start(self, supernet: Supernet, seed: int) -> SandwichState:
        return SandwichState(supernet, seed, self)


@final
class SandwichState(SamplerState):
    """Sandwich rule in one supernet."""

    def __init__(self, supernet: Supernet, seed: int, setting: Sandwich) -> None:
        self._space, self._seed, self._random_paths = supernet.space, seed, setting.random_paths
        self.temperature = setting.temperature
        ends = supernet.find_costliest(MACs()), supernet.find_cheapest(MACs())
        self._largest, self._smallest = (Path(architecture=self._space.canonical(each)) for each in ends)

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        draw = random.Random(f"{self._seed}/{step}")
        between = (Path(architecture=self._space.sample(draw)) for _ in range(self._random_paths))
        return (self._largest, self._smallest, *between)
