"""Interface of penalties: which weights they look at, and what these cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

from torch import Tensor, nn

from lightning_optim.graph.group import Group


@final
@dataclass(frozen=True, slots=True)
class Response:
    """One call of the network, whose output can be differentiated by its inputs.

    Args:
        inputs: Its inputs in floating point, each of which requires a gradient.
        output: Its output, ``[B, ...]``.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Penalized:
    """What a penalty sees in one training step.

    Args:
        weights: The targeted weights, by plain name in the LightningModule, in its order.
        layers: The layer of each of them.
        groups: Coupled channels that the targeted layers make, where the penalty needs them.
        parameters: Every parameter of the network, by the names that ``groups`` use.
        responses: The network's calls in this step, where the penalty needs them.
        draw: Number of the batch, and the rank: with a seed they tell what a penalty draws.
    """

    weights: Mapping[str, Tensor]
    layers: Mapping[str, nn.Module]
    groups: tuple[Group, ...] = ()
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    responses: tuple[Response, ...] = ()
    draw: tuple[int, int] = (0, 0)


class Penalty(ABC):
    """Penalty: a number that grows with weights, and is added to the loss of each training step.

    Attributes:
        treatable: Types of the layers that it can look at; none if it looks at the network as a whole.
        needs_groups: Whether it must know which channels of the network are coupled.
        needs_responses: Whether it differentiates the network's output by its inputs.
    """

    treatable: ClassVar[tuple[type[nn.Module], ...]]
    needs_groups: ClassVar[bool] = False
    needs_responses: ClassVar[bool] = False

    @abstractmethod
    def parameter_names(self, layer: nn.Module) -> list[str]:
        """Names of a targeted layer's own parameters that it looks at; none passes the layer over.

        A name that the layer has no parameter of is refused.

        Args:
            layer: A layer of a treatable type.
        """

    @abstractmethod
    def __call__(self, seen: Penalized) -> Tensor:
        """Return a scalar of at least 0, differentiable in the weights.

        Args:
            seen: The weights.
        """


def own_matrices(layer: nn.Module) -> list[str]:
    """Names of a layer's own parameters of two or more dimensions: kernels and matrices, no bias and no scale.

    Example:
        >>> own_matrices(nn.Linear(3, 2)), own_matrices(nn.BatchNorm1d(3))
        (['weight'], [])
    """
    return [name for name, value in layer.named_parameters(recurse=False) if value.ndim >= 2]
