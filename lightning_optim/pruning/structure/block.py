"""Block structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.functional import block_means, block_of_each, spread


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Structure):
    """Block structure: rectangles of output by input channels (Narang et al., 2017; arXiv:1711.02782).

    A convolution's kernels fall whole: ``rows=1, columns=1`` removes single kernels of it. A block scores the mean over
    its weights. Where the sides of a layer are no multiples of a block's, the last blocks are smaller. The sparsity
    counts blocks.

    Args:
        rows: Output channels of a block, at least 1.
        columns: Input channels of a block, at least 1.

    Raises:
        ValueError: If a value is out of range.
    """

    needs_coupling: ClassVar[bool] = False

    rows: int = 4
    columns: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block needs at least 1 row and 1 column, got {self.rows} x {self.columns}")

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        return {
            name: block_means(spread(score, weights[name]), self.rows, self.columns) for name, score in scores.items()
        }

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        masks = {}
        for name, blocks in keep.items():
            weight = weights[name]
            pairs = blocks.flatten()[block_of_each(weight, self.rows, self.columns)]
            masks[name] = pairs.view(*pairs.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
        return masks

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: block_means(mask, self.rows, self.columns) > 0 for name, mask in masks.items()}
