"""Interface of a sampler: it says which paths of a supernet an optimizer step trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet


class SamplerState(ABC):
    """Sampler of one supernet.

    Attributes:
        temperature: At this temperature the outputs of a step's first path are the soft targets of its others, in
            place of the training step's own loss; ``None`` trains each path on its own loss.
    """

    temperature: float | None = None

    @abstractmethod
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        """The paths of a step; their losses are averaged, and the optimizer takes one step.

        A function of the seed, of both arguments and, if something is learned, of the architecture parameters: every
        rank of a job, and every resumed run, finds the same without communication.

        Args:
            step: Number of optimizer steps that are done.
            progress: How far the fit is, in ``[0, 1]``.
        """


class Sampler(ABC):
    """Sampler: how a supernet is trained.

    Attributes:
        needs_progress: Whether the paths depend on how far the fit is, so that it must have an end.
    """

    needs_progress: ClassVar[bool] = False

    @abstractmethod
    def start(self, supernet: Supernet, seed: int) -> SamplerState:
        """Begin with one supernet.

        Raises:
            ValueError: If this sampler cannot train this space.
        """
