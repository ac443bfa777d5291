"""Sensitivity: how a metric falls when one layer or group of coupled channels alone loses entries."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import ArtefactError
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence
from lightning_optim.pruning.functional import mask_from_scores
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.functional import allocate_jointly, joint_name
from lightning_optim.surgery.layer_kinds import outputs_first, turned
from lightning_optim.surgery.parametrized import keep_directions, scored_weight, weight_name
from lightning_optim.surgery.select import plain_name, submodule


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityCurve:
    """Sensitivity curve: the metric while one pool alone is pruned.

    Args:
        pool: Name of the pool.
        size: Its entries: weights of a layer, or channels of a group.
        values: The metric at each sparsity of the table.
    """

    pool: str
    size: int
    values: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Sensitivity curves of all pools, over the same sparsities.

    Args:
        metric: Name of what was measured.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is.
        base: The metric of the whole network.
        sparsities: Fractions that went, ascending, in ``(0, 1)``.
        layers: Single weights of one layer at a time.
        groups: Coupled channels of one group at a time.
    """

    metric: str
    mode: Literal["max", "min"]
    base: float
    sparsities: tuple[float, ...]
    layers: tuple[SensitivityCurve, ...]
    groups: tuple[SensitivityCurve, ...]

    def __post_init__(self) -> None:
        check_sparsities(self.sparsities)
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {self.mode!r}")
        for curve in (*self.layers, *self.groups):
            if len(curve.values) != len(self.sparsities):
                raise ValueError(f"{curve.pool} has {len(curve.values)} values for {len(self.sparsities)} sparsities")

    def losses(self, curve: SensitivityCurve) -> list[float]:
        """How much worse than the base a pool makes the metric, at each sparsity; never falling, at least 0."""
        sign = 1.0 if self.mode == "max" else -1.0
        worst, losses = 0.0, []
        for value in curve.values:
            worst = max(worst, sign * (self.base - value))
            losses.append(worst)
        return losses

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


def check_sparsities(sparsities: Sequence[float]) -> None:
    """Refuse what is no ascending list of fractions between 0 and 1.

    Raises:
        ValueError: Saying so.
    """
    bounded = [0.0, *sparsities, 1.0]
    if not sparsities or any(left >= right for left, right in itertools.pairwise(bounded)):
        raise ValueError(f"sparsities must ascend within (0, 1), got {list(sparsities)}")


def read_sensitivity(path: str | Path) -> Sensitivity:
    """Read the table in an ``analyze.json``.

    Raises:
        ArtefactError: If the file is missing or holds no such table.
    """
    try:
        content = json.loads(Path(path).read_text())["sensitivity"]
        curves = {
            kind: tuple(SensitivityCurve(**{**curve, "values": tuple(curve["values"])}) for curve in content[kind])
            for kind in ("layers", "groups")
        }
        return Sensitivity(**{**content, **curves, "sparsities": tuple(content["sparsities"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{path} holds no sensitivity ({error}); 'lightning-optim analyze' writes such a file"
        ) from error


def sweep(
    network: nn.Module,
    layers: Sequence[str],
    coupling: Coupling | None,
    *,
    criterion: Criterion,
    structure: Structure,
    sparsities: Sequence[float],
    measure: Callable[[], float],
) -> list[SensitivityCurve]:
    """Prune one pool at a time by masking, at each sparsity, and measure; then put its weights back.

    Args:
        network: The network; as it was when the sweep ends, however it ends.
        layers: Names of the layers whose weights are scored.
        coupling: Coupled channels of the network, if ``structure`` needs them.
        criterion: What is least important; must need the weights alone.
        structure: What falls together.
        sparsities: Fractions of each pool to drop.
        measure: Returns the metric of the network as it is.

    Raises:
        ValueError: If the criterion needs to see data.
    """
    if criterion.needs != {Evidence.WEIGHT}:
        raise ValueError(f"{type(criterion).__name__!r} needs to see data, which no training brings: choose Magnitude")
    parameters = {plain_name(name): parameter for name, parameter in network.named_parameters()}
    weights = _scored({name: submodule(network, name) for name in layers})
    if coupling is not None:
        weights = {name: weight for name, weight in weights.items() if coupling.group_of(name, 0) is not None}
    scores = {name: criterion(LayerEvidence(name=name, weight=weight)) for name, weight in weights.items()}
    curves = []
    pools = structure.pools(weights, scores, coupling)
    for names in structure.competing(pools):
        competing = {name: pools[name] for name in names}
        values = []
        for sparsity in sparsities:
            keep = allocate_jointly(competing, [names], partial(_lowest_dropped, sparsity=sparsity))
            keep = structure.fitted(keep, competing)
            held = turned(network, {name: parameter.detach() for name, parameter in parameters.items()})
            masks = turned(network, structure.masks(keep, held, coupling))
            values.append(_measure_masked(parameters, keep_directions(network, masks), measure))
        size = sum(score.numel() for score in competing.values())
        curves.append(SensitivityCurve(pool=joint_name(names), size=size, values=tuple(values)))
    return curves


def _scored(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights by the name of the parameter that they are pruned through."""
    found = {weight_name(name, layer): layer for name, layer in layers.items()}
    return {name: outputs_first(layer, scored_weight(layer)) for name, layer in found.items() if name is not None}


def _lowest_dropped(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    return {pool: mask_from_scores(score, sparsity) for pool, score in scores.items()}


@torch.no_grad()
def _measure_masked(
    parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], measure: Callable[[], float]
) -> float:
    kept = {name: parameters[name].detach().clone() for name in masks}
    try:
        for name, mask in masks.items():
            parameters[name].mul_(mask)
        with torch.enable_grad():
            return measure()
    finally:
        for name, weight in kept.items():
            parameters[name].copy_(weight)
