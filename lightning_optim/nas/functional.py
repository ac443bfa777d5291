"""Arithmetic of supernet training."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# N samples, C classes


def soft_target_loss(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the soft targets of another network (Yu and Huang, 2019; arXiv:1903.05134, section 3.2).

    Args:
        logits: Shape [N, C] or [N, C, ...].
        target_logits: Of the same shape; no gradient flows into them.
        temperature: Divides both, above 0.

    Returns:
        The mean over all positions, times the temperature squared, so that gradients keep their size.

    Example:
        >>> import torch
        >>> soft_target_loss(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.6931)
    """
    targets = (target_logits.detach() / temperature).softmax(1)
    return -(targets * F.log_softmax(logits / temperature, 1)).sum(1).mean() * temperature**2
