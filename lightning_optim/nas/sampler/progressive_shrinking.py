"""Progressive shrinking: decisions open one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.sampler.base import Sampler, SamplerState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.search.decision import Decision


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressiveShrinking(Sampler):
    """Progressive shrinking (OFA): decisions open one after another (Cai et al., 2020; arXiv:1908.09791, section 3.3).

    A step trains one path. A decision that is still closed keeps the user's own option; one that is open is drawn
    uniformly. So the whole network is trained first, and small ones later start from it.

    Args:
        opens: When decisions open: a glob over their names (``"*:width"``: all of that kind) -> progress of the fit, in
            ``[0, 1]``. The first glob that matches a decision counts; one that none matches is open from the beginning.

    Raises:
        ValueError: If nothing is given, or a value lies outside ``[0, 1]``.

    Example:
        >>> ProgressiveShrinking(opens={"*:operation": 0.1, "*:width": 0.4}).opens
        {'*:operation': 0.1, '*:width': 0.4}
    """

    needs_progress: ClassVar[bool] = True

    opens: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "opens", {pattern: float(at) for pattern, at in self.opens.items()})
        if not self.opens:
            raise ValueError("opens must say when decisions open, such as {'*:width': 0.3}, got no entry")
        for pattern, at in self.opens.items():
            if not 0.0 <= at <= 1.0:
                raise ValueError(f"opens[{pattern!r}] is a progress of the fit and must lie in [0, 1], got {at}")

    @override
    def start(self, supernet: Supernet, seed: int) -> ShrinkingState:
        names = [decision.name for decision in supernet.decisions]
        for pattern in self.opens:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"opens[{pattern!r}] matches no decision: this space has {', '.join(names)}")
        return ShrinkingState(supernet, seed, self)


@final
class ShrinkingState(SamplerState):
    """Progressive shrinking of one supernet."""

    def __init__(self, supernet: Supernet, seed: int, setting: ProgressiveShrinking) -> None:
        self._supernet, self._seed, self._opens = supernet, seed, setting.opens

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        drawn = self._supernet.sample(self._seed, step)
        decided = {
            decision.name: drawn[decision.name] if self._opens_at(decision) <= progress else decision.default
            for decision in self._supernet.decisions
        }
        return (Path(architecture=self._supernet.space.canonical(decided)),)

    def _opens_at(self, decision: Decision) -> float:
        return next((at for pattern, at in self._opens.items() if fnmatchcase(decision.name, pattern)), 0.0)
