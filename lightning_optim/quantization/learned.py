"""Step sizes that are trained along with a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.scheme import Scheme


@final
class LearnedSteps:
    """The steps of all weights and activations whose quantizers learn them, in one flat tensor with one optimizer.

    Logarithms are kept: steps stay positive, and Adam changes each by a share of itself. The first simulated batch
    shows which steps there are; from the second on they are trained.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, list[int]] = {}
        self._zero_points: dict[str, Tensor] = {}
        self._found: dict[str, tuple[Tensor, Tensor]] = {}
        self._parts: dict[str, Tensor] = {}
        self._start_optimizer(torch.zeros(0))

    @property
    def keys(self) -> tuple[str, ...]:
        """What has a step of its own."""
        return tuple(self._sizes)

    @property
    def found_keys(self) -> tuple[str, ...]:
        """What was found and waits for ``start``, in order of names."""
        return tuple(sorted(self._found))

    @property
    def device(self) -> torch.device:
        """Where the steps lie."""
        return self._logarithms.device

    def find(self, key: str, step: Tensor, zero_point: Tensor) -> None:
        """Take note of a step's first value, and of the zero point that goes with it."""
        self._found.setdefault(key, (step.detach().float().clone(), zero_point.detach().float().clone()))

    def start(self) -> None:
        """Train what was found from now on."""
        found, self._found = {key: self._found[key] for key in self.found_keys}, {}
        self._sizes = {key: list(step.shape) for key, (step, _) in found.items()}
        self._zero_points = {key: zero_point for key, (_, zero_point) in found.items()}
        self._start_optimizer(torch.cat([step.flatten() for step, _ in found.values()]).log())
        self.refresh()

    def discard(self) -> None:
        """Forget what an unfinished batch showed."""
        self._found = {}

    def refresh(self) -> None:
        """Read the steps anew: once for every forward pass, since a graph serves only once."""
        if not self._sizes:
            return
        parts = torch.split(self._logarithms.exp(), [torch.Size(size).numel() for size in self._sizes.values()])
        self._parts = {key: part.view(size) for (key, size), part in zip(self._sizes.items(), parts, strict=True)}

    def qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return step and zero point on a device, or ``None`` if nothing was learned."""
        if key not in self._parts:
            return None
        return self._parts[key].to(device), self._zero_points[key].to(device)

    def update(self, mean: Callable[[Tensor], Tensor], learning_rate: float, loss_scale: float = 1.0) -> None:
        """Take one step of Adam, unless a gradient is not finite, and forget the gradient.

        Args:
            mean: Averages a tensor over all processes.
            learning_rate: Largest relative change of a step, about.
            loss_scale: What the loss was multiplied by.
        """
        gradient, self._logarithms.grad = self._logarithms.grad, None
        gradient = mean(torch.zeros_like(self._logarithms) if gradient is None else gradient) / loss_scale
        if gradient.isfinite().all():
            self._logarithms.grad = gradient
            self._optimizer.param_groups[0]["lr"] = learning_rate
            self._optimizer.step()
            self._logarithms.grad = None
        self.refresh()

    def move(self, device: torch.device) -> None:
        """Carry steps and optimizer over to a device."""
        if self.keys and self.device != device:
            self.load_state_dict(self.state_dict(), device)

    def state_dict(self) -> dict[str, Any]:
        """Return steps, zero points, gradient and optimizer, as primitives and tensors."""
        zero_points = {key: zero_point.cpu() for key, zero_point in self._zero_points.items()}
        gradient = None if self._logarithms.grad is None else self._logarithms.grad.cpu().clone()
        values = {"logarithms": self._logarithms.detach().cpu().clone(), "gradient": gradient}
        own = {"sizes": dict(self._sizes), "zero_points": zero_points}
        return {**own, **values, "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Take over what ``state_dict`` returned, on a device; ``None`` is where it lies."""
        self.discard()
        self._sizes, self._parts = dict(state["sizes"]), {}
        self._zero_points = {key: zero_point.to(device) for key, zero_point in state["zero_points"].items()}
        self._start_optimizer(state["logarithms"].clone().to(device))
        gradient = state["gradient"]
        self._logarithms.grad = None if gradient is None else gradient.clone().to(device)
        self._optimizer.load_state_dict(state["optimizer"])
        self.refresh()

    def _start_optimizer(self, logarithms: Tensor) -> None:
        self._logarithms = logarithms.detach().requires_grad_()
        self._optimizer = torch.optim.Adam([self._logarithms])


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedWeight(Quantizer):
    """A quantizer with the step that was learned for one weight.

    Args:
        rule: The quantizer.
        step: Its step, ``[O]`` or a scalar.
    """

    is_absolute: ClassVar[bool] = True

    rule: Quantizer
    step: Tensor

    @property
    @override
    def scheme(self) -> Scheme:
        return self.rule.scheme

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return self.step

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.rule.qparams(low, high)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return self.rule.integers(x, scale, zero_point)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return self.rule.fake(x, scale, zero_point, is_within=is_within)
