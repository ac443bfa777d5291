"""Architecture parameters: one number for each option of each decision, which gradients move."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.space import SearchSpace


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureSteps:
    """Steps of the architecture parameters: Adam, one step before each optimizer step of the weights.

    Args:
        held_out: Share of the training samples that these steps take their batches from, in ``(0, 1)``; the weights are
            trained on the others.
        learning_rate: Of Adam, above 0. Papers take 0.0003 for some 20,000 steps; a shorter fit needs more.
        weight_decay: Of Adam, at least 0.
        warmup: Share of the fit before the first of them, in ``[0, 1)``: weights that have seen little favour options
            without any.

    Raises:
        ValueError: If a value is out of range.
    """

    held_out: float = 0.5
    learning_rate: float = 0.01
    weight_decay: float = 0.001
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out is a share of the training samples, in (0, 1), got {self.held_out}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not self.weight_decay >= 0.0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup is a share of the fit, in [0, 1), got {self.warmup}")


@final
class ArchitectureParameters:
    """Architecture parameters of one space; the probabilities of a decision are their softmax.

    Args:
        space: What there is to decide.
        seed: Seeds the values that they begin with: of a normal distribution of deviation 0.001.

    Example:
        >>> from lightning_optim.search import Decision
        >>> space = SearchSpace([Decision(name="mix", options=("own", "skip"), default=0)])
        >>> parameters = ArchitectureParameters(space, seed=0)
        >>> parameters.probabilities("mix").round(decimals=1).tolist()
        [0.5, 0.5]
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        draw = random.Random(f"{seed}/architecture parameters")
        self._space = space
        self.values = {
            decision.name: torch.tensor([draw.gauss(0.0, 0.001) for _ in decision.options]).requires_grad_()
            for decision in space.decisions
        }

    def probabilities(self, decision: str, temperature: float = 1.0) -> Tensor:
        """Softmax of a decision's parameters divided by a temperature; differentiable."""
        return (self.values[decision] / temperature).softmax(0)

    def pick(self) -> Candidate:
        """The option of the largest parameter of each decision; of equals, the first."""
        return self._space.canonical({name: int(value.argmax()) for name, value in self.values.items()})
