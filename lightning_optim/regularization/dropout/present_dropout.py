"""Dropout that a network has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.regularization.dropout.base import DropoutMethod
from lightning_optim.surgery.torch_private import DropoutLayer

_ENDINGS = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d")
"""Of the names of classes in timm, torchvision and transformers."""
_RATES = ("p", "drop_prob")
"""Names of the attribute that holds the rate."""


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class PresentDropout(DropoutMethod):
    """Dropout that a network has: the rates of its own modules follow a schedule, and are theirs again after the fit.

    Modules are those of torch (``nn.Dropout`` and its kinds) and those whose class is called ``StochasticDepth``,
    ``DropBlock2d`` or, with whatever before it, ``DropPath`` (torchvision, timm, transformers). A rate that a layer
    passes on by itself, as ``nn.MultiheadAttention`` does, is left alone.

    Use it to let dropout end early, which helps networks that underfit, or begin late, which helps those that overfit
    (Liu et al., 2023; arXiv:2303.01500).

    Args:
        mode: ``"set"`` gives each module the probability; ``"scale"`` multiplies its own by it, so that rates that
            differ from layer to layer keep their proportion.

    Example:
        >>> PresentDropout(mode="scale").rates(0.5, [0.1, 0.2])
        [0.05, 0.1]
    """

    mode: Literal["set", "scale"] = "set"

    @override
    def rates(self, probability: float, own: Sequence[float]) -> list[float]:
        return [probability * rate if self.mode == "scale" else probability for rate in own]


def rate_attribute(module: nn.Module) -> str | None:
    """Name of the attribute that holds a dropout module's rate; ``None`` for another module.

    Example:
        >>> rate_attribute(nn.Dropout2d(0.1)), rate_attribute(nn.ReLU())
        ('p', None)
    """
    if isinstance(module, DropoutLayer):
        return "p"
    if not any(base.__name__.endswith(_ENDINGS) for base in type(module).__mro__):
        return None
    return next((name for name in _RATES if isinstance(vars(module).get(name), int | float)), None)
