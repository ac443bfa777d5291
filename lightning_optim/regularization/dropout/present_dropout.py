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

_RATES = {"DropPath": "drop_prob", "StochasticDepth": "p", "DropBlock2d": "p", "DropBlock3d": "p"}
"""Attribute of the rate by the end of a class's name: timm's and transformers', and torchvision's."""


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class PresentDropout(DropoutMethod):
    """Dropout that a network has: the rates of its own modules follow a schedule, and are theirs again after the fit.

    Modules are those of torch (``nn.Dropout`` and its kinds) and what is called ``StochasticDepth`` (torchvision) or
    ends in ``DropPath`` (timm, transformers). A rate that a layer passes on by itself, as ``nn.MultiheadAttention``
    does, is left alone.

    Use it to let dropout end early or begin late (Liu et al., 2023; arXiv:2303.01500, section 5): early dropout helps
    networks that underfit, late dropout those that overfit.

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
    ends = [name for base in type(module).__mro__ for end, name in _RATES.items() if base.__name__.endswith(end)]
    return next((name for name in ends if isinstance(vars(module).get(name), int | float)), None)
