"""Combined criterion: several criteria at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.functional import ranks
from lightning_optim.pruning.evidence import LayerEvidence, Need


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Combined(Criterion):
    """Combined criterion: several scores, each normalised within the layer, weighted and added.

    Where whole channels fall, each criterion is summed over a channel before it is normalised.

    Args:
        criteria: The criteria by names of your choice.
        weights: Weight of each, at least 0, by the same names; 1 if not given.
        normalise: ``"rank"`` replaces a score by its rank among the layer's, in ``(0, 1]``: scales and outliers do not
            count. ``"mean"`` divides by the mean absolute score of the layer.
        combine: ``"mean"`` takes the weighted mean, ``"maximum"`` the highest weighted score: what matters to one
            criterion stays.

    Raises:
        ValueError: If there is no criterion, a weight is without its criterion, below 0 or all are 0, or another value
            is out of range.

    Example:
        >>> from lightning_optim.pruning import Magnitude
        >>> from lightning_optim.pruning import Random
        >>> both = Combined(criteria={"size": Magnitude(), "chance": Random()}, weights={"chance": 0.0})
        >>> both(LayerEvidence(name="conv.weight", weight=torch.tensor([[1.0, -3.0]])))
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """

    criteria: Mapping[str, Criterion]
    weights: Mapping[str, float] | None = None
    normalise: Literal["rank", "mean"] = "rank"
    combine: Literal["mean", "maximum"] = "mean"

    def __post_init__(self) -> None:
        if not self.criteria:
            raise ValueError("criteria must hold at least one criterion, got none")
        given = dict(self.weights or {})
        for name, weight in given.items():
            if name not in self.criteria:
                raise ValueError(f"weights has {name!r}, but criteria are {sorted(self.criteria)}")
            if not 0.0 <= weight < math.inf:
                raise ValueError(f"weights must be at least 0, got {weight} for {name!r}")
        object.__setattr__(self, "criteria", dict(self.criteria))
        object.__setattr__(self, "weights", {name: float(given.get(name, 1.0)) for name in self.criteria})
        if not any(self._weight(name) for name in self.criteria):
            raise ValueError("at least one of weights must be above 0, got only zeros")
        if self.normalise not in ("rank", "mean"):
            raise ValueError(f"normalise must be 'rank' or 'mean', got {self.normalise!r}")
        if self.combine not in ("mean", "maximum"):
            raise ValueError(f"combine must be 'mean' or 'maximum', got {self.combine!r}")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(criterion.needs for criterion in self.criteria.values()))

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        scores = [_fit(criterion(seen), seen) for criterion in self.criteria.values()]
        for name, score in zip(self.criteria, scores, strict=True):
            if score.isnan().any():
                raise ValueError(f"{name!r} scores of {seen.name} are NaN; did training diverge?")
        normalised = [ranks(score) if self.normalise == "rank" else _over_mean(score) for score in scores]
        weighted = [self._weight(name) * score for name, score in zip(self.criteria, normalised, strict=True)]
        if self.combine == "maximum":
            return torch.stack(weighted).amax(0)
        return torch.stack(weighted).sum(0) / sum(self._weight(name) for name in self.criteria)

    def _weight(self, name: str) -> float:
        assert self.weights is not None  # filled in above
        return self.weights[name]


def _fit(score: Tensor, seen: LayerEvidence) -> Tensor:
    """Bring a score to the shape of what falls: one per channel, or one per weight."""
    if seen.falls == "channel":
        return score if score.dim() == 1 else score.flatten(1).sum(1)
    if score.shape == seen.weight.shape:
        return score
    return score.view(-1, *[1] * (seen.weight.dim() - 1)).expand_as(seen.weight)


def _over_mean(score: Tensor) -> Tensor:
    return score / score.abs().mean().clamp_min(torch.finfo(score.dtype).tiny)
