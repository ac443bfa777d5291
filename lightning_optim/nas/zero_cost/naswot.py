"""NASWOT: how differently an untrained network treats different inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.zero_cost.base import ZeroCostScore, filled, fresh_copy
from lightning_optim.surgery.inputs import Inputs

_ACTIVATIONS = frozenset({
    F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.gelu, F.silu,
    F.mish, F.hardswish, F.prelu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
})  # fmt: skip


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class NASWOT(ZeroCostScore):
    """NASWOT score (Mellor et al., 2021; arXiv:2006.04647, section 3).

    ``log |det K|``, where ``K[i, j]`` counts the activations that are on for both of the inputs ``i`` and ``j``, or off
    for both: a network that tells inputs apart has a large determinant. The inputs are drawn from a normal distribution
    in the shape of the example, since networks are compared, not data sets. What an activation is given counts as on
    where it is positive; ReLU and its kin are known, whether they are modules or functions.

    Args:
        num_samples: Inputs, at least 2.

    Raises:
        ValueError: If there are fewer, or the network calls no activation.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 64), nn.ReLU())
        >>> NASWOT(num_samples=8).measure(net, Inputs((torch.ones(1, 4),)), seed=0) > 0
        True
    """

    num_samples: int = 32

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")

    @override
    def measure(self, network: nn.Module, inputs: Inputs, seed: int) -> float:
        copy = fresh_copy(network, seed).train()  # fresh batch norms know no statistics but those of the batch
        normal = torch.Generator().manual_seed(seed)
        batch = filled(inputs, self.num_samples, lambda value: torch.randn(value.shape, generator=normal))
        kernel = _Kernel(self.num_samples)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), kernel:
            torch.manual_seed(seed)
            batch.call(copy)
        if not kernel.num_activations:
            raise ValueError(
                f"NASWOT compares what activations do, but {type(network).__name__} calls none that it knows, or none "
                "with a row per sample: take another zero-cost score"
            )
        sign, logarithm = torch.linalg.slogdet(kernel.agreeing)
        return float(logarithm) if float(sign) != 0.0 else -math.inf


@final
class _Kernel(TorchFunctionMode):
    """Sum of ``K`` over all activations that are called meanwhile."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.agreeing = torch.zeros(num_samples, num_samples, dtype=torch.float64)
        self.num_activations = 0

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = args[0] if args else None
        if func in _ACTIVATIONS and isinstance(given, Tensor) and given.dim() and len(given) == len(self.agreeing):
            on = (given.detach() > 0).flatten(1).double()
            self.agreeing += on @ on.T + (1.0 - on) @ (1.0 - on).T
            self.num_activations += on.shape[1]
        return func(*args, **(kwargs or {}))
