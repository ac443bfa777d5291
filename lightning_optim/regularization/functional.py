"""Arithmetic of regularization: what weights cost, where they move, and what the samples of a batch become."""

# B batch, C classes, H height and W width of an image
# G groups of a convolution, O output channels of one, I inputs of one output channel, K channels that are coupled

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_optim.surgery.precision import at_least_float32


def l1_penalty(weight: Tensor) -> Tensor:
    """Sum of absolute values: ``sum |w|``.

    Example:
        >>> l1_penalty(torch.tensor([1.0, -2.0]))
        tensor(3.)
    """
    return at_least_float32(weight).abs().sum()


def l2_penalty(weight: Tensor) -> Tensor:
    """Half the sum of squares: ``1/2 sum w ** 2``, whose gradient is ``w``.

    Example:
        >>> l2_penalty(torch.tensor([1.0, -2.0]))
        tensor(2.5000)
    """
    return 0.5 * at_least_float32(weight).square().sum()


def group_lasso_penalty(squares: Tensor, num_weights: int) -> Tensor:
    """Sum of the lengths of groups: ``sqrt(num_weights) * sum_k ||w_k||``.

    Args:
        squares: Sum of squares of the weights of each group, ``[K]``.
        num_weights: Number of weights of one group.

    Returns:
        A scalar; a group of zeros adds nothing to it, and nothing to the gradient.

    Example:
        >>> group_lasso_penalty(torch.tensor([9.0, 0.0, 16.0]), num_weights=4)
        tensor(14.)
    """
    is_alive = squares > 0
    lengths = torch.where(is_alive, squares, 1.0).sqrt()  # the root of 0 has no gradient
    return math.sqrt(num_weights) * torch.where(is_alive, lengths, 0.0).sum()


def orthogonality_penalty(matrices: Tensor) -> Tensor:
    """Squared distance of a Gram matrix from the identity: ``sum ||W W^T - 1||_F ** 2``.

    Args:
        matrices: ``[O, I]`` or ``[G, O, I]``. The smaller Gram matrix is taken: with more rows than columns it is
            that of the columns.

    Example:
        >>> orthogonality_penalty(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
        tensor(9.)
    """
    gram = _gram(at_least_float32(matrices))
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return (gram - identity).square().sum()


def spectral_penalty(matrices: Tensor, iterations: int) -> Tensor:
    """Half the square of the largest singular value: ``1/2 sigma(W) ** 2``.

    The singular vector is found by power iteration, without gradient; given it, the gradient ``sigma u v^T`` is exact.

    Args:
        matrices: ``[O, I]``, or ``[G, O, I]``, the blocks of one matrix: the largest of them counts.
        iterations: Steps of the power iteration, at least 1. It begins anew each time, at the same vector.

    Example:
        >>> spectral_penalty(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), iterations=20)
        tensor(4.5000)
    """
    weight = at_least_float32(matrices)
    with torch.no_grad():
        gram = _gram(weight)
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(gram.shape[-1], 1, dtype=gram.dtype, generator=generator).to(gram.device)
        for _ in range(iterations):
            vector = torch.nn.functional.normalize(gram @ vector, dim=-2)
    images = (weight.mT if _is_wide(weight) else weight) @ vector
    return 0.5 * images.square().sum((-2, -1)).max()


def jacobian_penalty(output: Tensor, inputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """Half the squared norm of the Jacobian by one projection, ``1/2 C ||v^T J|| ** 2``, in the mean over samples.

    Args:
        output: ``[B, ...]``, with ``C`` numbers a sample; made from ``inputs``.
        inputs: ``[B, ...]`` each; they require a gradient.
        vectors: A direction for each sample, shaped as ``output``; only its direction counts.

    Returns:
        A scalar that can be differentiated by the weights.

    Raises:
        RuntimeError: By torch, if the output does not depend on an input.

    Example:
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> jacobian_penalty(3.0 * x, [x], torch.tensor([[1.0, 0.0]])).item()
        9.0
    """
    flat = vectors.flatten(1) if vectors.ndim > 1 else vectors.unsqueeze(1)
    unit = torch.nn.functional.normalize(flat, dim=1).view(vectors.shape).to(output.device, output.dtype)
    gradients = torch.autograd.grad(output, inputs, unit, create_graph=True)
    squares = torch.stack([at_least_float32(gradient).square().sum() for gradient in gradients]).sum()
    return 0.5 * flat.shape[1] * squares / len(output)


def sum_of_squares(tensors: Iterable[tuple[Tensor, int, Tensor]]) -> Tensor:
    """Sum of squares of the weights of each of several coupled channels.

    Args:
        tensors: Each tensor that holds a part of them, the dimension along which it does, and the positions of each
            channel there, ``[K, n]``.

    Returns:
        ``[K]``. A weight that belongs to a channel twice, as one that the channel both reads and makes, counts twice.

    Example:
        >>> sum_of_squares([(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0, torch.tensor([[0], [1]]))])
        tensor([ 5., 25.])
    """
    parts = []
    for tensor, dim, index in tensors:
        per_position = at_least_float32(tensor).square().movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1)
        parts.append(per_position[index.to(per_position.device)].sum(1))
    return torch.stack(parts).sum(0)


def mix_samples(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Weighted mean of samples, or of their labels: ``weight * first + (1 - weight) * second``.

    Example:
        >>> mix_samples(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), weight=0.75)
        tensor([0.7500, 0.2500])
    """
    return weight * first + (1.0 - weight) * second


def paste_box(first: Tensor, second: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Images with a box of others: inside the box they are ``second``, outside ``first``.

    Args:
        first: ``[B, ..., H, W]``.
        second: Shaped as ``first``.
        box: Top, bottom, left and right, ``bottom`` and ``right`` excluded.

    Example:
        >>> paste_box(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), (0, 2, 1, 3))
        tensor([[[0., 1., 1.],
                 [0., 1., 1.]]])
    """
    top, bottom, left, right = box
    pasted = first.clone()
    pasted[..., top:bottom, left:right] = second[..., top:bottom, left:right]
    return pasted


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Labels of which a share is spread over all classes: ``(1 - smoothing) * labels + smoothing / C``.

    Args:
        labels: Probabilities, ``[B, C, ...]``.
        smoothing: The share, in ``[0, 1]``.

    Example:
        >>> smooth_labels(torch.tensor([[0.0, 1.0]]), smoothing=0.2)
        tensor([[0.1000, 0.9000]])
    """
    return (1.0 - smoothing) * labels + smoothing / labels.shape[1]


def drop_at_random(x: Tensor, shape: Sequence[int], probability: float, generator: torch.Generator) -> Tensor:
    """Drop numbers, and let the others grow to keep the mean: ``r x / (1 - p)``.

    Args:
        x: ``[B, ...]``.
        shape: First dimensions of ``x`` for each of which is drawn; what lies behind them is dropped together.
        probability: ``p``, of a drop, in ``[0, 1)``.
        generator: What to draw from, on the device of ``x``.

    Example:
        >>> drop_at_random(torch.ones(100, 2), (100,), 0.5, torch.Generator().manual_seed(0)).unique(dim=0)
        tensor([[0., 0.],
                [2., 2.]])
    """
    kept = torch.empty(*shape, *[1] * (x.ndim - len(shape)), dtype=x.dtype, device=x.device)
    return x * kept.bernoulli_(1.0 - probability, generator=generator).div_(1.0 - probability)


def block_rate(probability: float, block_size: int, height: int, width: int) -> float:
    """Rate at which blocks are drawn so that a share of a map is dropped: ``gamma`` of DropBlock.

    ``p / s**2 * H W / ((H - s + 1) (W - s + 1))``; overlaps of blocks are left out of account.

    Args:
        probability: ``p``, the share.
        block_size: ``s``, side of a block, which fits into the map.
        height: Of the map.
        width: Of the map.

    Example:
        >>> block_rate(0.09, block_size=3, height=10, width=10)
        0.015625
    """
    fits = (height - block_size + 1) * (width - block_size + 1)
    return probability / block_size**2 * height * width / fits


def drop_blocks(x: Tensor, probability: float, block_size: int, generator: torch.Generator) -> Tensor:
    """Drop square regions of maps, and let the rest grow to keep the mean.

    Args:
        x: ``[B, C, H, W]``.
        probability: Share of a map that is dropped, about, in ``[0, 1)``.
        block_size: Side of a region; a smaller map has regions as large as it is.
        generator: What to draw from, on the device of ``x``.

    Example:
        >>> x = drop_blocks(torch.ones(8, 4, 9, 9), 0.1, 3, torch.Generator().manual_seed(0))
        >>> round(float(x.mean()), 4)
        1.0
    """
    height, width = x.shape[-2:]
    size = min(block_size, height, width)
    rate = min(block_rate(probability, size, height, width), 1.0)
    shape = (*x.shape[:2], height - size + 1, width - size + 1)
    corners = torch.empty(shape, dtype=torch.bool, device=x.device).bernoulli_(rate, generator=generator)
    blocks = torch.nn.functional.pad(corners, [size - 1] * 4)
    for dim in (-2, -1):
        blocks = _any_of_window(blocks, size, dim)
    kept = ~blocks
    return x * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(x.dtype)


def sharpest_move(gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """Move of length ``rho`` along the gradient: ``rho * g / ||g||``, the norm over all weights (SAM).

    Args:
        gradients: Gradients of the weights.
        rho: Length of the move.

    Returns:
        How far each weight moves; not at all where the norm is not finite.

    Example:
        >>> sharpest_move([torch.tensor([3.0]), torch.tensor([4.0])], rho=0.5)
        [tensor([0.3000]), tensor([0.4000])]
    """
    found = [at_least_float32(gradient) for gradient in gradients]
    return _scaled(found, rho, found, gradients)


def sharpest_adaptive_move(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, eta: float
) -> list[Tensor]:
    """Move in units of the weights: ``rho * T ** 2 g / ||T g||`` with ``T = |w| + eta`` (ASAM).

    Args:
        weights: The weights.
        gradients: Their gradients.
        rho: Length of the move in these units.
        eta: What is added to the size of each weight, so that one of 0 moves too.

    Returns:
        How far each weight moves; not at all where the norm is not finite.

    Example:
        >>> sharpest_adaptive_move([torch.tensor([2.0])], [torch.tensor([-1.0])], rho=0.5, eta=0.0)
        [tensor([-1.])]
    """
    sizes = [at_least_float32(weight.detach()).abs() + eta for weight in weights]
    in_units = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
    return _scaled([size * each for size, each in zip(sizes, in_units, strict=True)], rho, in_units, gradients)


def _scaled(moves: Sequence[Tensor], rho: float, measured: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Moves by ``rho`` over the joint norm of what is measured, in number formats such as those given."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in measured]))
    if not norm.isfinite():
        return [torch.zeros_like(each) for each in like]
    factor = rho / (norm + 1e-12)
    return [(move * factor).to(each.dtype) for move, each in zip(moves, like, strict=True)]


def _any_of_window(mask: Tensor, size: int, dim: int) -> Tensor:
    """Whether anything is true in each window along a dimension; windows grow to twice their size at a time."""
    width = 1
    while width < size:
        step = min(width, size - width)
        rest = mask.shape[dim] - step
        mask = mask.narrow(dim, 0, rest) | mask.narrow(dim, step, rest)
        width += step
    return mask


def _gram(matrices: Tensor) -> Tensor:
    return matrices @ matrices.mT if _is_wide(matrices) else matrices.mT @ matrices


def _is_wide(matrices: Tensor) -> bool:
    return matrices.shape[-2] <= matrices.shape[-1]
