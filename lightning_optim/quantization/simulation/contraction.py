"""Contraction: an ``einsum`` of two tensors that is a matrix product between two permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """Contraction of two tensors, as axes that are named by letters.

    Args:
        left: Axes of the first tensor.
        right: Axes of the second tensor.
        out: Axes of the result.
    """

    left: str
    right: str
    out: str

    def run(self, _: str, left: Tensor, right: Tensor) -> Tensor:
        """Compute the contraction; with a parameter that shares no axis of the result, as a linear layer.

        Args:
            left: The first tensor.
            right: The second tensor.

        Example:
            >>> contraction = Contraction(left="ij", right="jk", out="ki")
            >>> contraction.run("", torch.ones(2, 3), torch.ones(3, 4)).shape
            torch.Size([4, 2])
        """
        if isinstance(left, nn.Parameter) and not isinstance(right, nn.Parameter):
            return Contraction(left=self.right, right=self.left, out=self.out)._run(right, left)
        return self._run(left, right)

    def _run(self, left: Tensor, right: Tensor) -> Tensor:
        batch = [axis for axis in self.left if axis in self.right and axis in self.out]
        summed = [axis for axis in self.left if axis in self.right and axis not in self.out]
        rows = [axis for axis in self.left if axis not in self.right]
        columns = [axis for axis in self.right if axis not in self.left]
        row_sizes, column_sizes = (
            [tensor.shape[axes.index(axis)] for axis in own]
            for tensor, axes, own in ((left, self.left, rows), (right, self.right, columns))
        )
        matrix = _as_matrix(left.permute([self.left.index(axis) for axis in batch + rows + summed]), batch, rows)
        if isinstance(right, nn.Parameter) and not batch:
            weight = _as_matrix(right.permute([self.right.index(axis) for axis in columns + summed]), [], columns)
            product = functional.linear(matrix, weight)
        else:
            order = [self.right.index(axis) for axis in batch + summed + columns]
            product = torch.matmul(matrix, _as_matrix(right.permute(order), batch, summed))
        product = product.reshape([*product.shape[: len(batch)], *row_sizes, *column_sizes])
        axes = batch + rows + columns
        return product.permute([axes.index(axis) for axis in self.out])


def contraction_of(args: Sequence[Any]) -> Contraction | None:
    """Return the contraction that the arguments of ``einsum`` ask for; ``None`` if they ask for something else.

    Example:
        >>> x = torch.ones(2, 2)
        >>> contraction_of(("ij, jk -> ik", x, x))
        Contraction(left='ij', right='jk', out='ik')
        >>> contraction_of(("ij,ij->ij", x, x)) is None
        True
    """
    if len(args) != 3 or not isinstance(args[0], str) or not all(isinstance(each, Tensor) for each in args[1:]):
        return None
    terms, arrow, out = args[0].replace(" ", "").partition("->")
    left, comma, right = terms.partition(",")
    if not (arrow and comma) or not (left + right + out).isalpha():
        return None
    is_once = all(len(set(axes)) == len(axes) for axes in (left, right, out))
    is_kept = set(left) ^ set(right) <= set(out) <= set(left) | set(right)
    has_sum = set(left) & set(right) - set(out)
    sizes = dict(zip(left, args[1].shape, strict=False))
    is_plain = all(sizes.get(axis, size) == size for axis, size in zip(right, args[2].shape, strict=False))
    return Contraction(left=left, right=right, out=out) if is_once and is_kept and has_sum and is_plain else None


def _as_matrix(tensor: Tensor, batch: Sequence[str], rows: Sequence[str]) -> Tensor:
    """View what follows the batch as a matrix, the axes of ``rows`` as one and all others as one."""
    first, middle = len(batch), len(batch) + len(rows)
    tensor = tensor.flatten(middle) if tensor.dim() > middle else tensor.unsqueeze(-1)
    return tensor.flatten(first, middle - 1) if rows else tensor.unsqueeze(first)
