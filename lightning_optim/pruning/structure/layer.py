"""Layer structure: the residual branches of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.branches import Branch, residual_branches
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.structure.base import Shrink, Structure, TouchedDim


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(Structure):
    """Layer structure: whole residual branches; a block then passes its input on (Fan et al., 2020).

    LayerDrop, arXiv:1909.11556. All parameters that serve a branch alone are masked, its norms included: it then adds
    exactly zero. A branch scores the mean over its targeted weights, and competes with those of all depths, however the
    sparsity is spread. The sparsity counts branches. One without any targeted layer is left alone, and does not count.

    Args:
        shrink: ``"end"`` takes the modules of fallen branches out of the network when the schedule's final sparsity is
            reached, ``"never"`` only masks.

    Raises:
        ValueError: If ``shrink`` is neither.
    """

    needs_coupling: ClassVar[bool] = True

    shrink: Shrink = "end"

    def __post_init__(self) -> None:
        if self.shrink not in ("never", "end"):
            raise ValueError(
                f"shrink must be 'never' or 'end' for layers, got {self.shrink!r}: until the end, those that are there "
                "compete with those that have gone"
            )

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        branches = _branches(coupling)
        scored = {branch.name: [scores[name] for name in branch.parameters if name in scores] for branch in branches}
        means = {name: _mean(found) for name, found in scored.items() if found}
        if not means:
            raise TargetError(
                f"none of the {len(weights)} targeted layers lies in one of the {len(branches)} residual branches that "
                "can fall: target others, or choose another structure"
            )
        return {name: mean.unsqueeze(0) for name, mean in means.items()}

    @override
    def competing(self, pools: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        return (tuple(pools),)

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        names = sorted({name for branch in self.gone_branches(keep, coupling) for name in branch.parameters})
        return {name: torch.zeros_like(weights[name], dtype=torch.bool) for name in names}

    @override
    def gone_branches(self, keep: Mapping[str, Tensor], coupling: Coupling | None) -> list[Branch]:
        return [branch for branch in _branches(coupling) if branch.name in keep and not keep[branch.name].any()]

    @override
    def concerns(self, name: str, coupling: Coupling) -> bool:
        return any(name in branch.parameters for branch in _branches(coupling))

    @override
    def touched(self, weights: Mapping[str, Tensor], coupling: Coupling) -> set[TouchedDim]:
        targeted = [branch for branch in _branches(coupling) if not weights.keys().isdisjoint(branch.parameters)]
        return {(name, None) for branch in targeted for name in branch.parameters}

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ShrinkError("branches hold several layers: they cannot be read off a rank's part of the weights")


def _branches(coupling: Coupling | None) -> tuple[Branch, ...]:
    if coupling is None:
        raise ShrinkError("layers need the network's coupling, which is not known yet")
    return residual_branches(coupling)


def _mean(scores: list[Tensor]) -> Tensor:
    """Mean over all weights of several layers."""
    return torch.stack([score.float().sum() for score in scores]).sum() / sum(score.numel() for score in scores)
