"""Input map to other entries of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.input_map.base import InputMap
from lightning_optim.errors import SampleError
from lightning_optim.surgery.inputs import Inputs

Key = str | int


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class FromBatch(InputMap):
    """Input map to other entries of the batch: the teacher is given what the data hold for it.

    Use it where student and teacher need different views of a sample: ids of another tokenizer, another crop, another
    modality.

    Args:
        keys: Entries of the batch, in the order of the teacher's arguments, or by the names of its keyword arguments.
            An entry is a key of a mapping, a position in a sequence, or a field of an object; ``"teacher.ids"`` is
            ``"ids"`` within ``"teacher"``.

    Raises:
        ValueError: If there is no key.

    Example:
        >>> FromBatch(keys={"input_ids": "teacher.ids"})(Inputs(), {"ids": [1], "teacher": {"ids": [2]}})
        Inputs(args=(), kwargs={'input_ids': [2]})
    """

    keys: Sequence[Key] | Mapping[str, Key]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("keys must name at least one entry of the batch, got none")

    @override
    def __call__(self, inputs: Inputs, batch: Any) -> Inputs:
        """Take the teacher's inputs out of the batch.

        Args:
            inputs: What the student's network was given.
            batch: The batch.

        Raises:
            SampleError: If the batch has no such entry.
        """
        if isinstance(self.keys, Mapping):
            return Inputs((), {name: _entry(batch, key) for name, key in self.keys.items()})
        return Inputs(tuple(_entry(batch, key) for key in self.keys))


def _entry(batch: Any, key: Key) -> Any:
    entries = _entries(batch)
    if key in entries:
        return entries[key]
    first, dot, rest = str(key).partition(".")
    if dot and first in entries:
        return _entry(entries[first], rest)
    raise SampleError(
        f"the teacher is to be given the batch's {key!r}, but a {type(batch).__name__} holds "
        f"{', '.join(map(repr, entries)) or 'no entries'}: set keys of FromBatch to one of these"
    )


def _entries(batch: Any) -> Mapping[Any, Any]:
    """Entries of a batch by key, position or field; positions are known as texts too, for what is nested."""
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, (tuple, list)):
        return {**dict(enumerate(batch)), **{str(place): value for place, value in enumerate(batch)}}
    return getattr(batch, "__dict__", {})
