"""Base of losses that compare features: what is inside the two networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.distillation.loss.base import Context, Loss
from lightning_optim.distillation.observation import Observation
from lightning_optim.distillation.place import PlacePair, Side, pair_places


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLoss(Loss):
    """Feature loss: the sum over pairs of places of what ``compare`` says.

    A place is a module by its name: ``"net.layer3"`` is its output, ``"net.layer3:input"`` its input. A ``*`` stands
    within one part of a dotted name, so that ``"net.blocks.*"`` are all blocks in their order.

    Args:
        student: Places in the student, by names in the LightningModule; at least one.
        teacher: Places in the teacher, by names in the teacher's network, as many. ``None`` takes the student's,
            without the name of the network in the LightningModule.
    """

    student: str | Sequence[str]
    teacher: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not place_texts(self.student) or (self.teacher is not None and not place_texts(self.teacher)):
            raise ValueError(f"a {type(self).__name__} needs at least one place in the student and in the teacher")

    @override
    def pairs(self, student: Side, teacher: Side) -> tuple[PlacePair, ...]:
        theirs = None if self.teacher is None else place_texts(self.teacher)
        pairs = pair_places(student, teacher, place_texts(self.student), theirs)
        if any(place.part == "attention" for pair in pairs for place in pair):
            raise ValueError(f"{type(self).__name__} compares tensors, an attention is none: take AttentionTransfer")
        return pairs

    @override
    def kept_outputs(self, output: Any) -> tuple[str | int | None, ...] | None:
        return ()

    @override
    def make_learned(self, student: Observation, teacher: Observation) -> nn.Module | None:
        pairs = zip(student.features, teacher.features, strict=True)
        made = {str(place): module for place, pair in enumerate(pairs) if (module := self.learn(*pair)) is not None}
        return nn.ModuleDict(made) if made else None

    def learn(self, student: Tensor, teacher: Tensor) -> nn.Module | None:
        """Make what learns for one pair, sized by its first tensors; ``None`` if nothing does.

        Args:
            student: The student's tensor.
            teacher: The teacher's.
        """
        return None

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        learned = dict(context.learned.named_children()) if context.learned is not None else {}
        pairs = zip(student.features, teacher.features, strict=True)
        losses = [self.compare(*pair, learned.get(str(place))) for place, pair in enumerate(pairs)]
        return torch.stack(losses).sum()

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        """Return a scalar for one pair of places.

        Args:
            student: The student's tensor.
            teacher: The teacher's, without gradient.
            learned: What ``learn`` has made for this pair.
        """


def place_texts(places: str | Sequence[str]) -> list[str]:
    """One text or several, as a list."""
    return [places] if isinstance(places, str) else list(places)
