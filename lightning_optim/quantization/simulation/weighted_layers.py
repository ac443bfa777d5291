"""Weighted layers: those of a network whose weights a post-training method may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lightning_optim.quantization.fold import fold_batch_norm, is_foldable
from lightning_optim.quantization.functional import per_channel
from lightning_optim.quantization.simulation.plan import Plan
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.torch_private import BatchNorm, Convolution


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedLayer:
    """Weighted layer: a convolution or a linear layer, and the batch norm that is folded into it.

    Args:
        name: Name of the module.
        key: Names its operator in the plan.
        module: The layer.
        norm: The batch norm behind it.
    """

    name: str
    key: str
    module: Convolution | nn.Linear
    norm: BatchNorm | None

    @property
    def bias(self) -> Tensor | None:
        """What is added to every output channel in the end, ``[O]``."""
        return self.norm.bias if self.norm is not None else self.module.bias

    @property
    def last(self) -> nn.Module:
        """The module whose output is the layer's, with the batch norm applied."""
        return self.module if self.norm is None else self.norm

    def folded(self) -> Tensor:
        """Return the weight with the batch norm folded in, ``[O, I, ...]``."""
        weight = self.module.weight.detach()
        return weight if self.norm is None else fold_batch_norm(weight, None, self.norm)[0].detach()

    @torch.no_grad()
    def scale_outputs(self, factor: Tensor) -> None:
        """Multiply every output channel, ``[O]``."""
        if self.norm is None:
            self.module.weight.mul_(per_channel(factor, self.module.weight))
            parameters: tuple[Tensor | None, ...] = (self.module.bias,)
        else:
            parameters = (self.norm.weight, self.norm.bias)
        for parameter in parameters:
            if parameter is not None:
                parameter.mul_(factor)

    @property
    def can_scale_outputs(self) -> bool:
        """Whether there are parameters that scale each output channel by itself."""
        return self.norm is None or self.norm.affine

    def input_view(self, weight: Tensor, num_channels: int) -> Tensor | None:
        """View a weight of this layer with its input channels in front, ``[C, ...]``.

        Args:
            weight: Shaped as the layer's own.
            num_channels: Channels of the layer before; a linear layer may read several values of each, flattened.

        Returns:
            A view, or ``None`` if the layer does not take so many channels.
        """
        if isinstance(self.module, nn.Linear):
            width = weight.shape[1]
            return weight.t().view(num_channels, -1, len(weight)) if width % num_channels == 0 else None
        if self.module.groups == 1:
            weight = weight.transpose(0, 1)
        elif weight.shape[1] > 1:
            return None
        return weight if len(weight) == num_channels else None


def find_layers(network: nn.Module, plan: Plan) -> list[WeightedLayer]:
    """Return the convolutions and linear layers that run in integers, in the order of the forward pass.

    Only what runs once, in a module of its own, is among them.
    """
    modules = named_modules(network) | {"": network}
    keys = [key for key, operator in plan.operators.items() if operator.is_integer]
    paths = [plan.operators[key].path for key in keys]
    layers = []
    for key, path in zip(keys, paths, strict=True):
        module, norm = modules.get(path), modules.get(plan.norms.get(key, "?"))
        is_layer = isinstance(module, (Convolution, nn.Linear)) and not getattr(module, "transposed", False)
        if is_layer and paths.count(path) == 1:
            assert isinstance(module, (Convolution, nn.Linear))
            layers.append(
                WeightedLayer(name=path, key=key, module=module, norm=norm if norm and is_foldable(norm) else None)
            )
    return layers
