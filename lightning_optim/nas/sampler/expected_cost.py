"""Expected cost: a differentiable term of what the architectures cost that the parameters stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from lightning_optim.checked import checked
from lightning_optim.cost.base import Cost
from lightning_optim.cost.macs import MACs
from lightning_optim.nas.supernet import Supernet


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OptionCosts:
    """Costs of options, one decision at a time.

    Args:
        base: Cost of the user's own network.
        differences: By decision, what each option alone adds to it.
    """

    base: float
    differences: Mapping[str, Sequence[float]]

    @property
    def least(self) -> float:
        """The lowest cost that this table knows."""
        return self.base + sum(map(min, self.differences.values()))

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """``base + sum_d sum_i p_d,i difference_d,i``; exact where decisions do not change each other's costs."""
        terms = [each * each.new_tensor(self.differences[name]) for name, each in probabilities.items()]
        return sum((term.sum() for term in terms[1:]), terms[0].sum()) + self.base


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedCost:
    """Expected cost: added to the loss of architecture steps (Cai et al., 2019; arXiv:1812.00332, equations 7 and 8).

    ``E`` is the cost of the user's own network and, for each decision, the expected difference that its options make,
    each measured alone in the user's own network. The term is ``weight * max(0, E / target - 1)``; without a target it
    is ``weight * E / own``.

    Args:
        cost: MACs are those of one sample; any other cost measures extracted networks on the CPU.
        weight: Factor of the term, above 0.
        target: Cost above which the term acts, in the unit of ``cost``; ``None`` always acts.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import torch
        >>> costs = OptionCosts(base=10.0, differences={"mix": [0.0, -8.0]})
        >>> ExpectedCost(target=4.0, weight=1.0).term(costs, {"mix": torch.tensor([0.5, 0.5])})
        tensor(0.5000)
    """

    cost: Cost = field(default_factory=MACs)
    weight: float = 0.1
    target: float | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0.0:
            raise ValueError(f"weight must be above 0, got {self.weight}; leave the expected cost out instead")
        if self.target is not None and not self.target > 0.0:
            raise ValueError(f"target must be above 0, or None to act always, got {self.target}")

    def measure(self, supernet: Supernet) -> OptionCosts:
        """Measure each option alone in the user's own network.

        Raises:
            ValueError: If no network of the space can reach the target.
        """
        own = supernet.default
        base = supernet.measure(own, self.cost)
        costs = OptionCosts(
            base=base,
            differences={
                decision.name: [
                    supernet.measure({**own, decision.name: option}, self.cost) - base
                    for option in range(len(decision.options))
                ]
                for decision in supernet.decisions
            },
        )
        if self.target is not None and self.target < costs.least:
            raise ValueError(
                f"the expected cost cannot reach target={self.target:g} ({type(self.cost).__name__}): the cheapest "
                f"architecture costs {costs.least:g}; raise the target, or widen the space downwards"
            )
        return costs

    def term(self, costs: OptionCosts, probabilities: Mapping[str, Tensor]) -> Tensor:
        """What is added to the loss.

        Args:
            costs: What ``measure`` has returned.
            probabilities: By decision, of its options; differentiable.
        """
        expected = costs.expected(probabilities)
        if self.target is None:
            return self.weight * expected / max(costs.base, 1.0)
        return self.weight * (expected / self.target - 1.0).clamp_min(0.0)
