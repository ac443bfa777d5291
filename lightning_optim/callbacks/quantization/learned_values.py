"""Training of the values that quantizers learn, beside the user's optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.own_parameters import mean_over_ranks
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.learner import Learner
from lightning_optim.quantization.simulation.learned_values import LearnedValues


def train_values(trainer: Trainer, learned: LearnedValues, learning_rate: float, loss_scale: float | None) -> None:
    """End a batch: update the values, and start those that it was the first to show, on whatever process.

    Args:
        trainer: The trainer.
        learned: The values that quantizers learn.
        learning_rate: Largest relative change of a value in one batch, about.
        loss_scale: What the loss was multiplied by; ``None`` if no optimizer took a step.
    """
    if learned.keys and loss_scale is not None:
        learned.update(lambda gradient: mean_over_ranks(trainer, gradient), learning_rate, loss_scale)
    if learned.found_keys:
        learned.start(trainer.strategy.root_device)


def checked_rate(learning_rate: float | None, quantizers: Iterable[Quantizer]) -> float:
    """Return the learning rate of what quantizers learn; ``None`` is 0.01.

    Raises:
        ValueError: If it is not positive and finite, or if no quantizer learns.
    """
    if learning_rate is None:
        return 0.01
    if not any(isinstance(quantizer, Learner) for quantizer in quantizers):
        raise ValueError(
            "learning_rate is for quantizers that learn their steps, such as LearnedStep: "
            "choose one for weights, activations or layers, or leave learning_rate out"
        )
    if not 0.0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    return float(learning_rate)
