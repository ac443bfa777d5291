"""Places: where in a network a transfer loss looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, final, get_args

from torch import Tensor, nn

from lightning_optim.errors import TapError, TargetError
from lightning_optim.surgery.containers import find_tensors, name_of
from lightning_optim.surgery.select import named_modules, submodule
from lightning_optim.surgery.tap import ModuleCall

Part = Literal["output", "input", "attention"]


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A place in a network: what goes into a module, what comes out of it, or the attention that it computes.

    Args:
        path: Plain name of the module.
        part: ``"output"``, ``"input"`` or ``"attention"``.

    Example:
        >>> Place.parse("encoder.2:input")
        Place(path='encoder.2', part='input')
    """

    path: str
    part: Part = "output"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``path``, ``path:output``, ``path:input`` or ``path:attention``.

        Raises:
            ValueError: If there is no path, or another part.
        """
        path, _, part = text.partition(":")
        found = next((each for each in get_args(Part) if each == (part or "output")), None)
        if not path or found is None:
            raise ValueError(
                "a place is 'path', 'path:output', 'path:input' or 'path:attention', with the path of a module below "
                f"the network: got {text!r}"
            )
        return cls(path, found)

    def __str__(self) -> str:
        return self.path if self.part == "output" else f"{self.path}:{self.part}"

    def read(self, call: ModuleCall) -> Tensor:
        """The tensor of one call of the module.

        Raises:
            TapError: If there is none, or more than one.
        """
        found = _tensors(call.output if self.part == "output" else (call.args, call.kwargs))
        if self.part == "input" and call.args and isinstance(call.args[0], Tensor):
            return call.args[0]
        if len(found) == 1:
            return next(iter(found.values()))
        what = "gives" if self.part == "output" else "takes"
        raise TapError(
            f"a loss needs the tensor at {str(self)!r}, but the module {what} {len(found)} of them "
            f"({', '.join(found) or 'none'}): look at a module inside it whose {self.part} is one tensor"
        )


def _tensors(value: Any) -> dict[str, Tensor]:
    return {name_of(path) or "itself": tensor for path, tensor in find_tensors(value)}


class OutputOnly(nn.Module):
    """A network of which nothing but the output can be seen.

    Attributes:
        reason: Why, and what to do.
    """

    reason: ClassVar[str]


def find_places(root: nn.Module, given: Sequence[str], network: str) -> tuple[Place, ...]:
    """The places that texts name, in their order; a text with ``*`` names modules in the order of the network.

    Args:
        root: Holds the modules.
        given: Texts as ``Place.parse`` reads them. A ``*``, ``?`` or ``[...]`` stands within one part of a dotted name.
        network: Whose places they are, for the message: ``"student"`` or ``"teacher"``.

    Raises:
        TargetError: If a text names no module, or the network gives its output alone.
        ValueError: If one is no place.

    Example:
        >>> root = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
        >>> [str(place) for place in find_places(root, ["?:input"], "student")]
        ['0:input', '1:input', '2:input']
    """
    places = [Place.parse(text) for text in given]
    return tuple(Place(name, place.part) for place in places for name in find_names(root, place.path, network))


def find_names(root: nn.Module, path: str, network: str) -> list[str]:
    """Names of the modules that a path names; one with ``*`` names modules in the order of the network.

    Args:
        root: Holds the modules.
        path: As in a place.
        network: Whose modules they are, for the message: ``"student"`` or ``"teacher"``.

    Raises:
        TargetError: If it names no module, or the network gives its output alone.
    """
    if isinstance(root, OutputOnly):
        raise TargetError(f"{path!r} cannot be seen in the {network}: {root.reason}")
    try:
        return _names(root, path)
    except TargetError as error:
        raise TargetError(f"{network}: {error}") from error


def _names(root: nn.Module, path: str) -> list[str]:
    if not any(sign in path for sign in "*?["):
        submodule(root, path)
        return [path]
    names = [name for name in named_modules(root) if _matches(name, path)]
    if not names:
        depth = path.count(".")
        near = [name for name in named_modules(root) if name.count(".") == depth][:8]
        raise TargetError(
            f"no module is named like {path!r}, where a * stands within one part of a name; there are "
            f"{', '.join(near) or 'none of that many parts'}"
        )
    return names


def _matches(name: str, glob: str) -> bool:
    parts, globs = name.split("."), glob.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


@final
@dataclass(frozen=True, slots=True)
class Side:
    """One of the two networks, as a transfer loss is told of it.

    Args:
        root: Holds the modules that places name.
        prefix: Plain name of the network in ``root``; empty if it is ``root``.
    """

    root: nn.Module
    prefix: str = ""

    def relative(self, text: str) -> str:
        """A place as the network itself would name it."""
        return text.removeprefix(f"{self.prefix}.") if self.prefix else text


PlacePair = tuple[Place, Place]


def pair_places(
    student: Side, teacher: Side, student_texts: Sequence[str], teacher_texts: Sequence[str] | None
) -> tuple[PlacePair, ...]:
    """Pair places of the student with places of the teacher, in their order.

    Args:
        student: The student.
        teacher: The teacher.
        student_texts: Places of the student.
        teacher_texts: Places of the teacher, as many; ``None`` names the student's, as the network itself would.

    Raises:
        TargetError: If a place names no module, or the two have not equally many.
        ValueError: If a text is no place.
    """
    if teacher_texts is None:
        teacher_texts = [student.relative(text) for text in student_texts]
    mine = find_places(student.root, student_texts, "student")
    theirs = find_places(teacher.root, teacher_texts, "teacher")
    if len(mine) != len(theirs):
        raise TargetError(
            f"places are paired in their order, but there are {len(mine)} in the student "
            f"({', '.join(map(str, mine))}) and {len(theirs)} in the teacher ({', '.join(map(str, theirs))}): "
            "name as many of each"
        )
    return tuple(zip(mine, theirs, strict=True))


Features = Mapping[Place, Any]
