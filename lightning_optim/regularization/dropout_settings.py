"""Settings of dropout: which methods there are, with what probability, and what each of them drops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, final

from torch import nn

from lightning_optim.checked import by_key
from lightning_optim.errors import TargetError
from lightning_optim.regularization.dropout.base import AddedDropout, DropoutMethod
from lightning_optim.regularization.dropout.present_dropout import PresentDropout, rate_attribute
from lightning_optim.schedule.factor import Factor, as_factors, factor_at
from lightning_optim.surgery.select import Targets


@final
@dataclass(frozen=True, slots=True)
class Dropped:
    """A module that drops, or whose output is dropped.

    Args:
        path: Its plain name in the LightningModule.
        module: The module.
        attribute: What holds its own rate; ``None`` where its output is dropped.
        own: Its own rate.
    """

    path: str
    module: nn.Module
    attribute: str | None
    own: float


@final
class DropoutSettings:
    """Settings of several dropout methods, by key.

    Args:
        dropout: Methods by key, or one, whose key is its class name in snake case.
        probability: Probability of every method, or of each by key; numbers, or schedules.
        targets: Modules of every method, or of each by key.

    Raises:
        TypeError: If a probability is of another kind.
        ValueError: If a probability is out of range, keys differ, or it is not said where a method drops.
    """

    def __init__(
        self,
        dropout: DropoutMethod | Mapping[str, DropoutMethod],
        probability: Factor | Mapping[str, Factor],
        targets: Targets | Mapping[str, Targets] | None,
    ) -> None:
        self.methods: dict[str, DropoutMethod] = by_key("dropout", dropout, DropoutMethod, "method")  # type: ignore[type-abstract]
        self.probabilities = as_factors(probability, [*self.methods], "probability", "methods")
        for key, each in self.probabilities.items():
            self._check_range(key, each)
        self.targets = self._targets_by_key(targets)

    def __repr__(self) -> str:
        return f"DropoutSettings({self.methods}, {self.probabilities}, {self.targets})"

    def probability(self, key: str, progress: float) -> float:
        """Probability of a method at a progress in ``[0, 1]``."""
        return factor_at(self.probabilities[key], progress)

    def select(self, root: nn.Module) -> dict[str, list[Dropped]]:
        """Return the modules of each method, in the model's order.

        Args:
            root: The LightningModule.

        Raises:
            TargetError: If targets match nothing that a method can work on.
            ValueError: If a module's rate would be out of range.
        """
        found = {key: self._select(root, key) for key in self.methods}
        for key, group in found.items():
            for progress in (0.0, 1.0):
                self._check_rates(key, group, self.probability(key, progress))
        return found

    def _check_rates(self, key: str, group: list[Dropped], probability: float) -> None:
        rates = self.methods[key].rates(probability, [each.own for each in group])
        for each, rate in zip(group, rates, strict=True):
            if not 0.0 <= rate < 1.0:
                raise ValueError(
                    f"probability {probability:g} of {key!r} makes a rate of {rate:g} of the {each.own:g} of "
                    f"{each.path!r}: rates must lie in [0, 1); lower it, or leave the module out in targets.exclude"
                )

    def _select(self, root: nn.Module, key: str) -> list[Dropped]:
        found = self.targets[key].select(root, (nn.Module,))
        if isinstance(self.methods[key], AddedDropout):
            outer = {path: module for path, module in found.items() if not _lies_in(path, found)}
            return [Dropped(path, module, None, 0.0) for path, module in outer.items()]
        present = [
            Dropped(path, module, name, vars(module)[name])
            for path, module in found.items()
            if (name := rate_attribute(module)) is not None
        ]
        for glob in self.targets[key].include:
            if not any(fnmatchcase(each.path, glob) for each in present):
                raise TargetError(
                    f"dropout {key!r}: target {glob!r} matches no dropout module; name modules whose output is to be "
                    "dropped, and take Dropout, StochasticDepth or DropBlock for them"
                )
        return present

    def _check_range(self, key: str, factor: Factor) -> None:
        method = self.methods[key]
        if isinstance(method, PresentDropout) and method.mode == "scale":
            return
        ends = [factor_at(factor, progress) for progress in (0.0, 1.0)]
        if not all(0.0 <= each < 1.0 for each in ends):
            raise ValueError(f"probability of {key!r} must lie in [0, 1), got {factor!r}")
        if isinstance(method, AddedDropout) and factor == 0.0:
            raise ValueError(f"probability of {key!r} is 0, so there would be nothing to do: raise it")

    def _targets_by_key(self, targets: Any) -> dict[str, Targets]:
        if isinstance(targets, Mapping):
            unknown = sorted(targets.keys() - self.methods.keys())
            if unknown:
                raise ValueError(f"targets names {unknown}, but the methods are {sorted(self.methods)}")
        found = {}
        for key, method in self.methods.items():
            own = targets.get(key) if isinstance(targets, Mapping) else targets
            if isinstance(method, AddedDropout) and (own is None or "*" in own.include):
                raise ValueError(
                    f"dropout {key!r} ({type(method).__name__}) must know where: name modules whose output is to be "
                    f"dropped in targets.include, such as 'net.layer1', got {own and list(own.include)}"
                )
            found[key] = own or Targets()
        return found


def _lies_in(path: str, found: Mapping[str, object]) -> bool:
    """Whether a module lies below another one that was found."""
    parts = path.split(".")
    return any(".".join(parts[:end]) in found for end in range(1, len(parts)))
