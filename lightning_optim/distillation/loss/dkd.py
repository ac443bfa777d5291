"""Decoupled knowledge distillation (DKD)."""

# B samples, C classes

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import check_logits, divergence, reduce_positions
from lightning_optim.distillation.loss.base import Context
from lightning_optim.distillation.loss.classes import ClassLoss
from lightning_optim.distillation.loss.output import entry_of
from lightning_optim.distillation.observation import Observation
from lightning_optim.errors import SampleError
from lightning_optim.schedule.factor import Factor, as_factor
from lightning_optim.surgery.precision import at_least_float32


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class DKD(ClassLoss):
    """Decoupled knowledge distillation (DKD): the soft-target loss in two parts with a weight each.

    ``temperature ** 2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s))`` in the mean over samples (Zhao et al., 2022;
    arXiv:2203.08679, equation 7). ``b`` is the probability of the label and that of all other classes together; ``q``
    are the probabilities of the other classes among themselves. The soft-target loss is the same with ``alpha=1`` and,
    for ``beta``, the probability that the teacher gives to the other classes: so the surer the teacher, the less is
    learned from these.

    Use it for classifiers with a sure teacher. Logits are ``[B, C]``; the labels are looked up in the batch.

    Measured: beside the labels it closed -46 % (± 21) of the gap of 1.0 points between a residual net and one of nine
    times its computation at the smallest of the weights that were tried (10,000 images of Fashion-MNIST, three seeds,
    ``benchmarks.distillation_accuracy``).

    Args:
        temperature: Softens both softmaxes, above 0; a number, or a schedule over the callback's window.
        alpha: Weight of the part about the label, at least 0.
        beta: Weight of the part about the other classes, at least 0; 8 for CIFAR-100 in the paper, 0.5 for ImageNet.
        labels: Where the integer labels ``[B]`` are in the batch: an index, a key, several joined by dots, or ``None``
            if they are the batch.
        class_dim: Axis of the classes; of ``[B, C]`` none need be given.
        output: Where the logits are in the student's output; see ``SoftTarget``.
        teacher_output: Where they are in the teacher's output.
        mask: Keyword argument of the network's call that marks valid samples ``[B]``.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from lightning_optim.distillation import Context, Observation
        >>> student, teacher = (Observation((), {}, torch.tensor([row])) for row in ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
        >>> loss = DKD(temperature=1.0, alpha=0.0, beta=1.0)
        >>> context = Context(progress=0.0, batch=(None, torch.tensor([2])))
        >>> float(loss(student, teacher, context))  # the other two classes are alike
        0.0
    """

    temperature: Factor = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    labels: str | int | None = 1

    def __post_init__(self) -> None:
        ClassLoss.__post_init__(self)
        as_factor(self.alpha, "alpha")
        as_factor(self.beta, "beta")

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        mine, theirs, class_dim, mask = self.logits(student, teacher)
        check_logits(mine, theirs, class_dim)
        if mine.ndim != 2 or class_dim % 2 != 1:
            raise ValueError(f"DKD needs logits [B, C], got shape {list(mine.shape)} with classes along {class_dim}")
        labels = self._labels(context.batch, mine)
        temperature = self.temperature_at(context.progress)
        parts = [_split((at_least_float32(logits) / temperature).log_softmax(-1), labels) for logits in (theirs, mine)]
        (their_binary, their_others), (my_binary, my_others) = parts
        terms = self.alpha * divergence(their_binary, my_binary) + self.beta * divergence(their_others, my_others)
        return temperature**2 * reduce_positions(terms, "mean", mask)

    def _labels(self, batch: Any, logits: Tensor) -> Tensor:
        labels = entry_of(batch, self.labels)
        wanted = f"DKD needs integer labels of shape {list(logits.shape[:1])} in the batch at labels={self.labels!r}"
        if not isinstance(labels, Tensor):
            found = f"{sorted(map(str, batch))}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
            raise SampleError(f"{wanted}, but the batch is {found}: set labels to the key or index of the labels")
        is_integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool)
        if not is_integer or labels.shape != logits.shape[:1]:
            raise SampleError(
                f"{wanted}, but found {labels.dtype} of shape {list(labels.shape)}: set labels to the key or index of "
                "the labels; where samples are mixed, or have several labels, use SoftTarget"
            )
        if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
            raise SampleError(f"{wanted}, each from 0 to {logits.shape[1] - 1}, but one of them is outside of this")
        return labels.long()


def _split(log_probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the two sides (label, all others), ``[B, 2]``, and of the others among themselves."""
    places = torch.arange(log_probabilities.shape[1] - 1, device=labels.device)
    others = log_probabilities.gather(1, places + (places >= labels[:, None]))
    rest = others.logsumexp(1, keepdim=True)
    return torch.cat([log_probabilities.gather(1, labels[:, None]), rest], 1), others.log_softmax(1)
