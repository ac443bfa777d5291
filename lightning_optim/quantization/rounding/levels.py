"""Arithmetic of quantizers whose values do not lie one step apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Return, with the sign of ``x``, the level that is nearest to its magnitude; the lower one in the middle.

    Args:
        x: Values; any shape.
        levels: Levels from 0 upwards, ``[L]``.

    Example:
        >>> nearest_level(torch.tensor([-2.9, 0.4, 1.5, 100.0]), torch.tensor([0.0, 1.0, 2.0, 4.0]))
        tensor([-2.,  0.,  1.,  4.])
    """
    levels = levels.to(x.device)
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(x.abs(), middles)].copysign(x)


def additive_powers(num_terms: int, num_exponents: int) -> list[int]:
    """Return all sums of ``num_terms`` powers of two, each one of ``num_exponents`` or 0 (arXiv:1909.13144, eq. 5).

    Term ``i`` is one of ``0, 2**-i, 2**-(i + n), 2**-(i + 2n), ...`` with ``n`` terms; all are multiplied by the power
    of two that makes them whole.

    Example:
        >>> additive_powers(1, 3), additive_powers(2, 1)
        ([0, 1, 2, 4], [0, 1, 2, 3])
    """
    top = num_terms * num_exponents - 1
    sums = {0}
    for term in range(num_terms):
        powers = [0, *(1 << (top - term - place * num_terms) for place in range(num_exponents))]
        sums = {total + power for total in sums for power in powers}
    return sorted(sums)


def ternary_scale(weight: Tensor, granularity: str) -> Tensor:
    """Return the mean magnitude of what lies above the threshold (arXiv:1605.04711, eq. 6): ``[O]`` or a scalar.

    Example:
        >>> ternary_scale(torch.tensor([[1.0, -2.0, 0.1]]), "channel")
        tensor([1.5000])
    """
    rows = _rows(weight.detach().abs().float(), granularity)
    kept = rows > 0.7 * rows.mean(1, keepdim=True)
    scale = (rows * kept).sum(1) / kept.sum(1).clamp(min=1)
    return scale if granularity == "channel" else scale[0]


def ternarize(x: Tensor, granularity: str) -> Tensor:
    """Return -1, 0 or 1: the sign where a magnitude exceeds 0.7 times the mean one (arXiv:1605.04711, eq. 3 and 6).

    Example:
        >>> ternarize(torch.tensor([[1.0, -2.0, 0.1]]), "channel")
        tensor([[ 1., -1.,  0.]])
    """
    magnitudes = x.abs()
    threshold = 0.7 * _rows(magnitudes, granularity).mean(1)
    threshold = threshold.view(-1, *[1] * (x.dim() - 1))
    return x.sign() * (magnitudes > threshold)


def binarize(x: Tensor) -> Tensor:
    """Return the sign, where 0 counts as positive (arXiv:1603.05279, section 3.1).

    Example:
        >>> binarize(torch.tensor([-0.3, 0.0, 2.0]))
        tensor([-1.,  1.,  1.])
    """
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def squash(x: Tensor) -> Tensor:
    """Return ``tanh(x) / max |tanh(x)|``, in ``[-1, 1]`` (arXiv:1606.06160, inside eq. 9).

    Example:
        >>> squash(torch.tensor([0.5, -0.5, 0.0]))
        tensor([ 1., -1.,  0.])
    """
    bent = x.tanh()
    return bent / bent.abs().amax().clamp(min=1e-12)


def group_extreme(weight: Tensor, group_size: int) -> Tensor:
    """Return the largest magnitude of each group of ``group_size`` input channels, ``[O, I / group_size]``.

    A weight of fewer input channels is one group.

    Args:
        weight: ``[O, I, ...]``.
        group_size: Divides I.

    Raises:
        ValueError: If it does not.

    Example:
        >>> group_extreme(torch.tensor([[1.0, -2.0, 0.0, 3.0]]), 2)
        tensor([[2., 3.]])
    """
    inputs = weight.shape[1]
    size = min(group_size, inputs)
    if inputs % size:
        raise ValueError(
            f"group_size must divide the input channels of a layer, got {group_size} for {inputs}; "
            "give this layer a quantizer of its own"
        )
    return weight.detach().reshape(len(weight), inputs // size, -1).abs().amax(2)


def _rows(x: Tensor, granularity: str) -> Tensor:
    return x.flatten(1) if granularity == "channel" else x.reshape(1, -1)


class _StraightThrough(torch.autograd.Function):
    """Gives the gradient of the rounded values to the values within a bound."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, scale: Tensor, bound: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if bound is None else (x.abs() <= bound,)))
        return (whole * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        saved = ctx.saved_tensors  # read once: a checkpoint computes them anew
        if saved:
            gradient = gradient * saved[0]
        return gradient, None, None, None


def straight_through(x: Tensor, whole: Tensor, scale: Tensor, bound: Tensor | None = None) -> Tensor:
    """Return ``whole * scale``, with the gradient 1 for ``x`` where ``|x| <= bound``, and everywhere without a bound.

    Args:
        x: Values that get the gradient; any shape and floating dtype.
        whole: The integers that stand for them, as floats.
        scale: Step between two integers; broadcasts against ``x``.
        bound: Largest magnitude that gets a gradient; broadcasts against ``x``.

    Example:
        >>> x = torch.tensor([0.4, 3.0], requires_grad=True)
        >>> straight_through(x, torch.tensor([1.0, 1.0]), torch.tensor(0.5), torch.tensor(1.0)).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """
    out: Tensor = _StraightThrough.apply(x, whole, scale, bound)  # type: ignore[no-untyped-call]  # torch's own
    return out
