"""What is kept of a teacher's answers: the tensors that losses read, whole or as likeliest classes."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.distillation.cache.packed_logits import (
    is_packed,
    pack_top_logits,
    packed_names,
    packed_temperatures,
    unpack_top_logits,
)
from lightning_optim.distillation.loss.base import Loss
from lightning_optim.distillation.loss.output import select_output
from lightning_optim.distillation.loss.soft_target import SoftTarget
from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.top_logits import TopLogits
from lightning_optim.errors import TeacherError
from lightning_optim.surgery.tap import ModuleCall

OutputKey = str | int | None
# Of the probability; below it, gradients begin to point elsewhere than those of all classes.
_SMALL_SHARE = 0.3


@final
class KeptAnswers:
    """What is kept of a teacher's answers, for some losses.

    Args:
        losses: The losses by key.
        top_k: How many likeliest classes to keep; ``None`` keeps all numbers.

    Raises:
        ValueError: If a loss needs more than can be kept, naming it.

    Example:
        >>> kept = KeptAnswers({"soft_target": SoftTarget(temperature=2.0)}, top_k=1)
        >>> call = ModuleCall((torch.zeros(2, 3),), {}, torch.tensor([[0.0, 1.0, 2.0], [3.0, 2.0, 1.0]]))
        >>> list(kept.split(Recording(call), Recording(call)))
        ['output/classes', 'output/index', 'output/logits', 'output/rest at 2.0']
    """

    def __init__(self, losses: Mapping[str, Loss], top_k: int | None) -> None:
        for key, loss in losses.items():
            _check_can_be_kept(key, loss, top_k)
        self._losses, self.top_k = losses, top_k
        soft = [loss for loss in losses.values() if isinstance(loss, SoftTarget)]
        found = {loss.top_temperature for loss in soft} if top_k else set()
        self._temperatures = sorted(each for each in found if each is not None)
        self._places: tuple[Place, ...] = ()
        self._has_warned = False

    def look_at(self, places: Iterable[Place]) -> None:
        """Keep the features at these places of the teacher too."""
        self._places = tuple(dict.fromkeys(places))

    def lacking(self, top_k: int | None, fields: Collection[str]) -> str | None:
        """What answers lack that a loss reads, in words; ``None`` if nothing.

        Args:
            top_k: How many likeliest classes they hold; ``None`` if they hold all numbers.
            fields: Names of their tensors.
        """
        if top_k != self.top_k:
            return f"its answers were written with top_k={_null(top_k)}, and not with top_k={_null(self.top_k)}"
        wanted = [_at(place) for place in self._places]
        for key in self._outputs(fields):
            name = _output(key)
            held = packed_temperatures(name, fields)
            other = next((each for each in self._temperatures if each not in held), None)
            if held and other is not None:
                return (
                    f"its answers were written for temperature {' and '.join(map(str, held))}, and a loss has {other}"
                )
            wanted += [name] if self.top_k is None else packed_names(name, self._temperatures)
        absent = next((name for name in wanted if name not in fields), None)
        there = ", ".join(map(repr, sorted(fields)))
        return None if absent is None else f"a loss needs {absent!r}, and its answers hold {there}"

    def split(self, student: Recording, teacher: Recording) -> dict[str, Tensor]:
        """Tensors to keep of an answer, by name.

        Args:
            student: The student's call.
            teacher: The teacher's answer to the same samples, or to some of them.

        Raises:
            TeacherError: If a number is not finite.
            ValueError: If there are too few classes.
        """
        fields = {_at(place): teacher.features[place] for place in self._places}
        output = teacher.call.output
        for key, loss in self._outputs_of(output).items():
            logits = select_output(output, key, network="teacher", setting="teacher_output")
            _check_finite(logits, _output(key))
            if self.top_k is None:
                fields[_output(key)] = logits
                continue
            assert isinstance(loss, SoftTarget)
            top = _top(logits.movedim(loss.class_axis(student.at(())), -1), self.top_k, self._temperatures)
            self._warn_of_others(top)
            fields |= pack_top_logits(_output(key), top)
        return fields

    def join(self, call: ModuleCall, fields: Mapping[str, Tensor]) -> Recording:
        """The answer as losses see it.

        Args:
            call: The student's call.
            fields: What ``split`` has made.
        """
        outputs: dict[OutputKey, Any] = {}
        for key in self._outputs(fields):
            name = _output(key)
            is_whole = self.top_k is None
            outputs[key] = fields[name] if is_whole else unpack_top_logits(name, fields, self._temperatures)
        output = outputs.get(None, outputs)
        return Recording(
            ModuleCall(call.args, call.kwargs, output), {place: fields[_at(place)] for place in self._places}
        )

    def _warn_of_others(self, top: TopLogits) -> None:
        """Say once if most of the probability is the others', of which nothing is kept but their sum."""
        shares = {temperature: 1.0 - float(rest.exp().mean()) for temperature, rest in top.rest.items()}
        temperature, share = min(shares.items(), key=lambda pair: pair[1])
        if share >= _SMALL_SHARE or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"at temperature {temperature}, top_k={self.top_k} classes hold {share:.0%} of the teacher's probability, "
            "and of the others nothing is kept but their sum: lower the temperature, raise top_k, or set it to null",
            stacklevel=2,
        )

    def _outputs(self, fields: Collection[str]) -> dict[OutputKey, Loss]:
        """Keys in the teacher's output, which was a tensor if one is kept under that name."""
        whole = _output(None)
        return self._outputs_of(torch.empty(0) if whole in fields or is_packed(whole, fields) else {})

    def _outputs_of(self, output: Any) -> dict[OutputKey, Loss]:
        return {key: loss for loss in self._losses.values() for key in loss.kept_outputs(output) or ()}


def _check_can_be_kept(key: str, loss: Loss, top_k: int | None) -> None:
    name = f"losses[{key!r}], a {type(loss).__name__},"
    if loss.kept_outputs({}) is None:
        raise ValueError(
            f"{name} reads of the teacher's answer what a cache cannot keep, which are single tensors of its output "
            "and of its features: take the loss out, or distil without a cache"
        )
    if top_k is not None and (not isinstance(loss, SoftTarget) or loss.top_temperature is None):
        raise ValueError(
            f"{name} needs all numbers of the teacher's answer, but the cache keeps top_k={top_k} classes, which are "
            "enough for SoftTarget alone, at one temperature and without standardize: set top_k to null"
        )


def _check_finite(answer: Tensor, name: str) -> None:
    if answer.is_floating_point() and not bool((answer < torch.inf).all()):  # -inf excludes a class
        raise TeacherError(f"the teacher's {name} holds numbers that are not finite: none of them is kept")


def _top(logits: Tensor, k: int, temperatures: Iterable[float]) -> TopLogits:
    if logits.shape[-1] <= k:
        raise ValueError(
            f"the cache keeps top_k={k} of {logits.shape[-1]} classes, which is no less than all: set top_k to null, "
            "or to fewer"
        )
    return TopLogits.of(logits, k, temperatures)


def _output(key: OutputKey) -> str:
    return "output" if key is None else f"output.{key}"


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)


def _at(place: Place) -> str:
    return f"at {place}"
