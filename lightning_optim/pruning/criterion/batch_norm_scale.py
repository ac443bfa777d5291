"""Batch-norm scale criterion (network slimming)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need
from lightning_optim.surgery.shard import local


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormScale(Criterion):
    """Batch-norm scale criterion: ``|gamma|``, the scale of the batch norm that reads the layer's output.

    Network slimming (Liu et al., 2017; arXiv:1708.06519, section 3). It tells more where training pulls scales towards
    zero (their equation 1, an L1 penalty on the scales). All weights of a channel share its score.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(2)
        >>> _ = norm.weight.data.copy_(torch.tensor([-0.5, 0.25]))
        >>> BatchNormScale()(LayerEvidence(name="conv.weight", weight=torch.zeros(2, 3, 3, 3), norm=norm))
        tensor([0.5000, 0.2500])
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({Evidence.MODULE})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        scale = None if seen.norm is None else seen.norm.weight
        if not isinstance(scale, Tensor):
            found = "none does" if seen.norm is None else "the one that does has none"
            raise ValueError(
                f"'BatchNormScale' needs a batch norm with a scale to read the output of {seen.name}, but {found}; "
                "leave it out in targets.exclude"
            )
        return local(scale.detach()).abs()
