"""Combined teacher: several loaded teachers, whose answers are averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.distillation.teacher.student_copy import StudentCopy
from lightning_optim.errors import TeacherError
from lightning_optim.surgery.containers import find_tensors, map_tensors, name_of
from lightning_optim.surgery.tap import ModuleCall


@final
class CombinedTeacher(LoadedTeacher):
    """Combined teacher: gives the weighted mean of its members' outputs, and records places of each member.

    Args:
        module: Holds the networks by the members' keys.
        members: The teachers by key.
        shares: Share of each in the mean, by the same keys; their sum is 1.
    """

    def __init__(self, module: nn.Module, members: Mapping[str, LoadedTeacher], shares: Mapping[str, float]) -> None:
        self._module, self._members, self._shares = module, members, shares

    @property
    @override
    def module(self) -> nn.Module:
        return self._module

    @property
    @override
    def copies(self) -> Sequence[StudentCopy]:
        return [copy for member in self._members.values() for copy in member.copies]

    @override
    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        for member in self._members.values():
            member.place(device, student_dtype)

    @override
    def look_at(self, places: Iterable[Place]) -> None:
        places = list(places)
        for key, member in self._members.items():
            member.look_at(_inside(key, place) for place in places if place.path.partition(".")[0] == key)

    @override
    def release(self) -> None:
        for member in self._members.values():
            member.release()

    @override
    def __call__(self, call: ModuleCall, batch: Any = None) -> Recording:
        answers = {key: member(call, batch) for key, member in self._members.items()}
        first = next(iter(answers.values())).call
        output = _mean({key: answer.call.output for key, answer in answers.items()}, self._shares)
        features = {
            Place(f"{key}.{place.path}" if place.path else key, place.part): feature
            for key, answer in answers.items()
            for place, feature in answer.features.items()
        }
        return Recording(ModuleCall(first.args, first.kwargs, output), features)

    @override
    def inputs_for(self, call: ModuleCall, batch: Any) -> Any:
        return {key: member.inputs_for(call, batch) for key, member in self._members.items()}

    @override
    def fingerprint(self) -> str:
        held = sorted((key, self._shares[key], member.fingerprint()) for key, member in self._members.items())
        return hashlib.blake2b(repr(held).encode(), digest_size=16).hexdigest()

    @override
    def advice(self, call: ModuleCall, batch: Any) -> list[str]:
        return [text for member in self._members.values() for text in member.advice(call, batch)]


def _inside(key: str, place: Place) -> Place:
    return Place(place.path.removeprefix(key).removeprefix("."), place.part)


def _mean(outputs: Mapping[str, Any], shares: Mapping[str, float]) -> Any:
    """Weighted mean of each floating-point tensor; of the rest, what the first one says."""
    found = {key: {name_of(path): tensor for path, tensor in find_tensors(value)} for key, value in outputs.items()}
    for key, tensors in found.items():
        _check_alike(*next(iter(found.items())), key, tensors)
    means: Iterator[Tensor] = iter(
        [
            _mean_of({key: tensors[name] for key, tensors in found.items()}, shares)
            for name in next(iter(found.values()))
        ]
    )
    return map_tensors(lambda _: next(means), next(iter(outputs.values())))


def _mean_of(tensors: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
    first = next(iter(tensors.values()))
    if not first.is_floating_point():
        return first
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors.values()])
    exact = torch.promote_types(dtype, torch.float32)
    return torch.stack([tensor.to(exact) * shares[key] for key, tensor in tensors.items()]).sum(0).to(dtype)


def _check_alike(first: str, expected: Mapping[str, Tensor], key: str, found: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        here, there = (list(tensors[name].shape) if name in tensors else "nothing" for tensors in (expected, found))
        if here != there:
            raise TeacherError(
                f"teachers {first!r} and {key!r} cannot be averaged: {name or 'the output'!r} is {here} of the one and "
                f"{there} of the other; wrap one in a module that returns what the other does"
            )
