"""Wanda criterion: weights times the norm of what they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.functional import ranks_in_rows, scale_by_input
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need, Statistic


def _squared(values: Tensor) -> Tensor:
    return values.float().square()  # half precision would overflow


_ENERGY = Statistic(name="squared input", of=Evidence.INPUT, term=_squared)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanda(Criterion):
    """Wanda criterion: ``|w_ij| * ||x_j||``, ``x_j`` all values of the input channel that the weight reads.

    Sun et al., 2023; arXiv:2306.11695, equation 1. The norm is taken as a root mean square over every sample and
    position since the last pruning step: layers that see more positions are not favoured.

    Args:
        within: Whom a weight is compared with: those of its own ``"output"``, as the paper does (the score is then its
            rank there, so that every output loses the same share), or of its ``"layer"``. Channels and
            neurons need ``"layer"``.

    Raises:
        ValueError: If ``within`` is neither.

    Example:
        >>> import torch
        >>> (energy,) = [need for need in Wanda().needs if isinstance(need, Statistic)]
        >>> gathered = {"totals": {energy: torch.tensor([2.0, 32.0])}, "counts": {energy: 2}}
        >>> seen = LayerEvidence(name="linear.weight", weight=torch.tensor([[3.0, -1.0], [0.2, 0.1]]), **gathered)
        >>> Wanda(within="layer")(seen)
        tensor([[3.0000, 4.0000],
                [0.2000, 0.4000]])
        >>> Wanda()(seen)
        tensor([[0.5000, 1.0000],
                [0.5000, 1.0000]])
    """

    within: Literal["output", "layer"] = "output"

    def __post_init__(self) -> None:
        if self.within not in ("output", "layer"):
            raise ValueError(f"within must be 'output' or 'layer', got {self.within!r}")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({Evidence.WEIGHT, _ENERGY})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        if self.within == "output" and seen.falls == "channel":
            raise ValueError(
                "'Wanda' compares weights within each output channel, which says nothing of the channels; "
                "set within='layer' to prune channels"
            )
        scores = scale_by_input(seen.weight.detach().float(), seen.mean(_ENERGY).sqrt())
        return ranks_in_rows(scores) if self.within == "output" else scores
