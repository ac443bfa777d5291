"""N:M sparsity, the pattern that sparse matrix units compute with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.functional import lowest_of_each, must_stay, spread, with_those_that_stay


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SemiStructured(Structure):
    """N:M sparsity: ``keep`` of every ``out_of`` input channels stay at most (Mishra et al., 2021; arXiv:2104.08378).

    The full pattern has a sparsity of ``1 - keep / out_of``, and a schedule that ends there completes it in every
    layer. On the way the sparsity asked is reached to the weight: only those weights fall that are among the
    ``out_of - keep`` lowest of their group, the lowest first, so that no group ever loses more than the pattern takes.
    Layers whose number of input channels (of one group of a grouped convolution) ``out_of`` does not divide are left
    out with a warning, and do not count.

    Args:
        keep: Weights that stay in each group, at least 1.
        out_of: Length of a group, above ``keep``; 4, with ``keep=2``, is what hardware computes with.

    Raises:
        ValueError: If a value is out of range.
    """

    needs_coupling: ClassVar[bool] = False

    keep: int = 2
    out_of: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.keep < self.out_of:
            raise ValueError(f"a pattern keeps at least 1 and fewer than out_of, got {self.keep}:{self.out_of}")

    @property
    @override
    def highest_sparsity(self) -> float:
        return 1.0 - self.keep / self.out_of

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        fitting = [name for name in scores if weights[name].shape[1] % self.out_of == 0]
        self._report(sorted(scores.keys() - set(fitting)), len(fitting))
        return {name: self._within_pattern(spread(scores[name], weights[name]), weights[name]) for name in fitting}

    def _within_pattern(self, scores: Tensor, weight: Tensor) -> Tensor:
        # What has gone is first in its group whatever it scores: it has used up a place of the pattern.
        ranked = scores.masked_fill(weight == 0, -float("inf"))
        return must_stay(scores, ~lowest_of_each(ranked, self.out_of - self.keep, self.out_of))

    def _report(self, left_out: list[str], num_fitting: int) -> None:
        pattern = f"{self.keep}:{self.out_of}"
        if not num_fitting:
            raise TargetError(
                f"no targeted layer can be {pattern} sparse: {self.out_of} divides the input channels of none of "
                f"{', '.join(left_out[:5])}"
            )
        if left_out:
            warnings.warn(
                f"{', '.join(left_out)} stay dense: {self.out_of} does not divide their input channels, as {pattern} "
                "sparsity needs; exclude them in targets.exclude to be rid of this warning",
                stacklevel=2,
            )

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        return dict(keep)

    @override
    def fitted(self, keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return with_those_that_stay(keep, scores)

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(masks)
