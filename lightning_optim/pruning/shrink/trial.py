"""Trial of a cut: is the cut model the same function as the masked one?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import reason_of
from lightning_optim.graph.coupling import Coupling, Group, keep_channels
from lightning_optim.graph.masked import run_masked
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.copies import eval_copy, eval_view
from lightning_optim.surgery.cut import apply_cut

PARAMETERS = 2_000_000_000
"""Parameters that a search may run through, some minutes; a number and no time, so that every run finds the same."""
Choice = tuple[Group, Tensor]
"""A group, and the channels of it that stay: indices of shape ``[n]``."""


@final
class Trial:
    """Trial: cuts copies of a model, and compares them with its full-size graph where the same channels are masked.

    Each cut is tried with disturbed weights too: a layer that starts at zero would hide a wrong one. Groups at
    fault are found by bisection, in a limited number of trials: what is not proved by then stays whole.

    Args:
        model: The model that was captured; left untouched.
        coupling: Its coupling.
        args: One batch of positional inputs, of the shapes that were captured.
        kwargs: Keyword inputs of the batch.
        tolerance: Largest difference that is allowed, relative to the largest output.

    Attributes:
        error: The largest difference found for what ``accept`` last accepted.
    """

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        tolerance: float,
    ) -> None:
        self._coupling, self._args, self._kwargs, self._tolerance = coupling, args, dict(kwargs or {}), tolerance
        self._true = eval_view(model)
        self._disturbed = disturb(eval_copy(model))
        size = sum(parameter.numel() for parameter in model.parameters())
        self._trials = self._left = max(10, min(200, PARAMETERS // max(1, size)))
        self.error = 0.0

    def accept(self, choices: list[Choice]) -> tuple[list[Choice], dict[Group, str]]:
        """Return the choices that can be cut together, and the groups of the others with the reason."""
        reason = self._objection(choices)
        if reason is None:
            return choices, {}
        if len(choices) == 1:
            return [], {choices[0][0]: reason}
        middle = len(choices) // 2
        accepted, refused = self.accept(choices[:middle])
        others, refused_too = self.accept(choices[middle:])
        refused |= refused_too
        if self._objection(accepted + others) is None:
            return accepted + others, refused
        for choice in others:  # right apart, wrong together: add them one by one
            reason = self._objection([*accepted, choice])
            if reason is None:
                accepted = [*accepted, choice]
            else:
                refused[choice[0]] = reason
        self._judge(accepted)
        return accepted, refused

    def _objection(self, choices: list[Choice]) -> str | None:
        """Why these choices cannot be cut together, or that no trial is left; ``None`` if they can."""
        self._left -= 1
        return self._judge(choices) if self._left >= 0 else f"{self._trials} trials did not find which cuts are right"

    def _judge(self, choices: list[Choice]) -> str | None:
        self.error = 0.0
        for base in (self._disturbed, self._true) if choices else ():
            try:
                found = self._compare(base, choices)
            except Exception as error:
                return reason_of(error)
            if not found <= self._tolerance:
                return f"shrunk and masked outputs differ by {found:.1e}, more than {self._tolerance:.0e}"
            self.error = max(self.error, found)
        return None

    def _compare(self, base: nn.Module, choices: list[Choice]) -> float:
        masked = run_masked(base, self._coupling, choices, self._args, self._kwargs)
        cut = eval_view(base)
        apply_cut(cut, keep_channels(choices))
        with torch.no_grad():
            outputs = cut(*self._args, **self._kwargs)
        shrunk = tensors_of(outputs)
        return difference(shrunk, masked)


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference, relative to the largest value; infinite where shapes differ, NaN where values are."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        return float("inf")
    differences = [0.0]
    for one, other in zip(found, wanted, strict=True):
        if one.numel():
            scale = other.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            differences.append(float((one.double() - other.double()).abs().max() / scale))
    return max(differences, key=lambda value: (math.isnan(value), value))


@torch.no_grad()
def disturb(model: nn.Module) -> nn.Module:
    """Add seeded noise to every parameter: a tenth of its root mean square, or a hundredth where it is all zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            size = 0.1 * parameter.pow(2).mean().sqrt()
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * torch.where(size > 0, size, torch.full_like(size, 0.01)))
    return model
