"""Neuron structure: whole rows of a layer, with their biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.functional import spare_best, with_those_that_stay
from lightning_optim.surgery.parametrized import bias_names, layer_name


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron(Structure):
    """Neuron structure: all that makes one output of a layer, a linear row or a convolution's filter, and its bias.

    Nothing else is touched, so that it works on any model, also one that cannot be captured; ``Channel`` finds what
    reads the neuron too, and can remove it physically. A neuron scores the mean over its weights. The best neuron of
    each layer stays.
    """

    needs_coupling: ClassVar[bool] = False

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        pools = {}
        for name, score in scores.items():
            neurons = score if score.dim() == 1 else score.flatten(1).float().mean(1)
            pools[name] = spare_best(neurons, gone=(weights[name] == 0).flatten(1).all(1))
        return pools

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        masks = {}
        for name, neurons in keep.items():
            for member in (name, *bias_names(layer_name(name))):
                if member in weights:
                    shape = weights[member].shape
                    masks[member] = neurons.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        return masks

    @override
    def fitted(self, keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return with_those_that_stay(keep, scores)

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: mask.flatten(1).any(1) for name, mask in masks.items() if mask.dim() > 1}
