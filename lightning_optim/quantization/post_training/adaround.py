"""AdaRound: it is learned whether each weight is rounded up or down."""

# G groups, O output channels of a group, K weights of an output channel

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import per_channel
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.post_training.grid import is_found_again, largest_of_each_scale, replace_weight
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.simulation.calibration import run_hooked
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.weighted_layers import WeightedLayer, find_layers
from lightning_optim.surgery.torch_private import Convolution

_STRETCH = (-0.1, 1.1)  # the paper's gamma and zeta
_EXPONENTS = (20.0, 2.0)  # of the regularization, falling
_FREE = 0.2  # share of the steps before it begins
_SMALLEST = 1e-12


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AdaRound(PostTraining):
    """Round each weight of a layer up or down so that the layer's output moves least.

    Nagel et al., 2020 (arXiv:2004.10568, eq. 21-24), on the inputs that the layer has in floating point. The squared
    error is a function of the weights and of the inputs' second moments alone, which makes a step cheap. It is taken
    relative to that of rounding to the nearest, and an output channel that would be no better is rounded to the
    nearest. The largest weight of each scale stays, so that the quantizer finds the same grid again; a layer whose
    quantizer does not is left as it is. Treated are linear layers and two-dimensional convolutions that pad with zeros;
    one with a batch norm only if each output channel has a scale of its own.

    Args:
        num_steps: Steps of Adam for each layer, at least 1.
        lr: Its learning rate, > 0.
        strength: Weight of the regularization that drives each choice to up or down, > 0; the paper's lambda.
    """

    num_steps: int = 300
    lr: float = 0.1
    strength: float = 10.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        for name in ("lr", "strength"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    @override
    def apply(self, network: nn.Module, simulator: Simulator, batches: Sequence[Any]) -> tuple[str, ...]:
        assert simulator.plan is not None
        changed = []
        for layer in filter(_is_treatable, find_layers(network, simulator.plan)):
            quantizer, weight = simulator.weight_quantizer_of(layer.key), layer.module.weight
            if layer.norm is not None and quantizer.scheme.granularity != "channel":
                continue
            rounded = self._round(weight.detach(), _moments(network, layer.module, batches), quantizer)
            if replace_weight(layer.module, rounded):
                changed.append(layer.name)
        return tuple(changed)

    def _round(self, weight: Tensor, moments: Tensor, quantizer: Quantizer) -> Tensor | None:
        scale = quantizer.weight_scale(weight)
        steps = per_channel(scale, weight)
        rows = (len(moments), -1, moments.shape[-1])
        pinned = largest_of_each_scale(weight, scale).view(rows)
        in_steps = (weight / steps).view(rows)
        integers = adaptive_rounding(in_steps, moments, pinned, self.num_steps, self.lr, self.strength)
        rounded = integers.view_as(weight).clamp(quantizer.scheme.qmin, quantizer.scheme.qmax) * steps
        return rounded if is_found_again(rounded, quantizer, scale) else None


def adaptive_rounding(
    weight: Tensor, moments: Tensor, pinned: Tensor, num_steps: int, lr: float, strength: float
) -> Tensor:
    """Round each weight up or down so that outputs move least: Nagel et al., 2020, eq. 21.

    Args:
        weight: In steps of its grid, ``[G, O, K]``.
        moments: Mean of ``x x^T`` over the inputs, ``[G, K, K]``.
        pinned: Weights that are rounded to the nearest, ``[G, O, K]``.
        num_steps: Steps of Adam.
        lr: Its learning rate.
        strength: Weight of the regularization; the error is relative to that of rounding to the nearest.

    Returns:
        Whole numbers, shaped as ``weight``; no output channel is worse than rounded to the nearest.
    """
    nearest, below = weight.round(), weight.floor()
    low, high = _STRETCH
    share = ((weight - below - low) / (high - low)).clamp(1e-4, 1.0 - 1e-4)
    logits = share.logit().requires_grad_()
    base = output_error(weight, nearest, moments).clamp(min=_SMALLEST)
    optimizer = torch.optim.Adam([logits], lr=lr)
    with torch.enable_grad():
        for step in range(num_steps):
            up = rectified_sigmoid(logits)
            rounded = torch.where(pinned, nearest, below + up)
            loss = weight.shape[-1] * (output_error(weight, rounded, moments) / base).sum()
            progress = (step / num_steps - _FREE) / (1.0 - _FREE)
            if progress >= 0.0:
                exponent = _EXPONENTS[0] + (_EXPONENTS[1] - _EXPONENTS[0]) * progress
                loss = loss + strength * (1.0 - (2.0 * up - 1.0).abs() ** exponent).sum()
            (logits.grad,) = torch.autograd.grad(loss, logits)
            optimizer.step()
    chosen = torch.where(pinned, nearest, below + (logits.detach() >= 0.0))
    is_better = output_error(weight, chosen, moments) < output_error(weight, nearest, moments)
    return torch.where(is_better.unsqueeze(-1), chosen, nearest)


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """Return how far each weight is rounded up, in ``[0, 1]``: Nagel et al., 2020, eq. 23.

    Example:
        >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = _STRETCH
    return (logits.sigmoid() * (high - low) + low).clamp(0.0, 1.0)


def output_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> Tensor:
    """Return the mean squared error of each output, ``[G, O]``, of weights ``[G, O, K]``."""
    error = rounded - weight
    return ((error @ moments) * error).sum(-1)


def _is_treatable(layer: WeightedLayer) -> bool:
    module = layer.module
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _moments(network: nn.Module, layer: Convolution | nn.Linear, batches: Sequence[Any]) -> Tensor:
    """Mean of ``x x^T`` over all that each output of a layer is computed from, ``[G, K, K]``."""
    num_groups, size = getattr(layer, "groups", 1), layer.weight[0].numel()
    sums = torch.zeros(num_groups, size, size, device=layer.weight.device)
    counts: list[int] = []

    def hook(_module: nn.Module, args: Any, _output: Any) -> None:
        columns = _columns(layer, args[0].detach().float()).view(num_groups, size, -1)
        sums.add_(columns @ columns.transpose(1, 2))
        counts.append(columns.shape[-1])

    run_hooked(network, batches, [layer.register_forward_hook(hook)])
    return sums / max(sum(counts), 1)


def _columns(layer: Convolution | nn.Linear, x: Tensor) -> Tensor:
    """What each output is computed from, ``[G * K, N]``."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, layer.in_features).t().contiguous()
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]  # of two dimensions
    return patches.transpose(0, 1).reshape(patches.shape[1], -1)
