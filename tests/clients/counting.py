"""What a callback has done to a network, counted without asking the callback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"addmm", "baddbmm", "bmm", "convolution", "linear", "mkldnn_rnn_layer", "mm"}


def weights_of(module: nn.Module) -> list[Tensor]:
    """Weights of linear layers and convolutions; transformers' ``Conv1D`` is a linear layer too."""
    layers = ("Linear", "NonDynamicallyQuantizableLinear", "Conv1d", "Conv2d", "Conv1D")
    found = [layer.weight for layer in module.modules() if type(layer).__name__ in layers]
    return [weight.detach() for weight in found]


def zeros_of(module: nn.Module) -> float:
    """Share of zeros among the weights."""
    weights = weights_of(module)
    return sum(int((weight == 0).sum()) for weight in weights) / max(1, sum(map(torch.numel, weights)))


def parameters_of(module: nn.Module) -> int:
    """How many parameters there are."""
    return sum(parameter.numel() for parameter in module.parameters())


class Products(TorchDispatchMode):
    """Matrix products and convolutions as they are computed: how many of their weights have few distinct values.

    Args:
        module: An operand that has the shape of one of its parameters counts as that weight.
        most: At most so many distinct values in a row, or in a column, are few.
    """

    def __init__(self, module: nn.Module, most: int) -> None:
        super().__init__()
        shapes = [tuple(each.shape) for each in module.parameters() if each.ndim > 1 and min(each.shape[:2]) > 1]
        self.shapes = {*shapes, *((shape[1], shape[0]) for shape in shapes if len(shape) == 2)}
        self.most, self.few, self.all = most, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            for operand in tree_leaves(args):
                if isinstance(operand, Tensor) and self._shape(operand) in self.shapes and operand.numel() > self.most:
                    self.all += 1
                    self.few += self._distinct(operand) <= self.most
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _shape(operand: Tensor) -> tuple[int, ...]:
        batched = operand.ndim == 3 and (len(operand) == 1 or operand.stride(0) == 0)
        return tuple(operand.shape[1:] if batched else operand.shape)

    @staticmethod
    def _distinct(operand: Tensor) -> int:
        matrix = operand.detach()[0] if operand.ndim == 3 and operand.stride(0) == 0 else operand.detach()
        rows = matrix.reshape(len(matrix), -1)
        sides = (rows, matrix.t()) if matrix.ndim == 2 else (rows,)
        return min(max(len(row.unique()) for row in side) for side in sides)
