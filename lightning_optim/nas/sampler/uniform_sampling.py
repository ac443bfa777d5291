"""Uniform sampling: one path a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.sampler.base import Sampler, SamplerState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class UniformSampling(Sampler):
    """Uniform sampling: single paths (SPOS), drawn uniformly (Guo et al., 2020; arXiv:1904.00420, section 3.2).

    The cheapest way to train a supernet: a step is that of one plain network, and all kinds of decisions take part.

    Example:
        >>> UniformSampling()
        UniformSampling()
    """

    @override
    def start(self, supernet: Supernet, seed: int) -> UniformState:
        return UniformState(supernet, seed)


@final
class UniformState(SamplerState):
    """Uniform sampling of one supernet."""

    def __init__(self, supernet: Supernet, seed: int) -> None:
        self._supernet, self._seed = supernet, seed

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        return (Path(architecture=self._supernet.sample(self._seed, step)),)
