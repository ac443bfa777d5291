"""Check of a quantizer's operand: weights or activations."""

from __future__ import annotations

from lightning_optim.quantization.quantizer.base import Operand, Quantizer
from lightning_optim.quantization.quantizer.learner import WeightLearner

_GRANULARITIES = {Operand.WEIGHT: ("tensor", "channel", "group"), Operand.ACTIVATION: ("tensor", "token")}


def check_operand(quantizer: Quantizer, operand: Operand) -> None:
    """Refuse to quantize what a quantizer is not made for.

    Raises:
        ValueError: If it can't quantize weights, or activations, at all or at this granularity.
    """
    name, scheme = type(quantizer).__name__, quantizer.scheme
    if operand not in quantizer.serves:
        other = next(iter(quantizer.serves)).value
        raise ValueError(f"{name} quantizes {other}s, not {operand.value}s: choose another quantizer")
    allowed = _GRANULARITIES[operand]
    if scheme.granularity not in allowed:
        raise ValueError(
            f"granularity of {operand.value}s must be one of {', '.join(allowed)}, got {scheme.granularity!r} in {name}"
        )
    if operand is Operand.WEIGHT and not (scheme.narrow_range or isinstance(quantizer, WeightLearner)):
        raise ValueError(
            f"narrow_range=False of {name} is for activations: weights never reach the most negative integer of "
            "their own range; take LearnedStep(narrow_range=False)"
        )
