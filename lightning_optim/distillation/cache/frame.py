"""Frames: the pieces of a file that grows, each of which is there whole or not at all."""

# A frame is: magic | length of head | length of body | checksum of head | checksum of body | head (JSON) | body

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, final

from lightning_optim.errors import ArtefactError

MAGIC = b"LOANSWER"
_START = struct.Struct("<8sIQII")


class SupportsSlices(Protocol):
    """A file of which parts can be read."""

    def __getitem__(self, part: slice) -> memoryview:
        """The bytes of a part."""


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a file.

    Args:
        head: What its JSON says.
        begin: Where its body begins, in bytes of the file.
        end: Where its body ends, and the next frame begins.
        checksum: CRC-32 that the body should have.
    """

    head: dict[str, Any]
    begin: int
    end: int
    checksum: int

    def is_sound(self, data: SupportsSlices | bytes) -> bool:
        """Whether the body is what was written.

        Args:
            data: The file.
        """
        return zlib.crc32(data[self.begin : self.end]) == self.checksum


def make_frame(head: dict[str, Any], body: bytes = b"") -> bytes:
    """Return the bytes of a frame.

    Args:
        head: Plain values.
        body: Any bytes.

    Example:
        >>> [frame.head for frame in read_frames(make_frame({"n": 1}) + make_frame({"n": 2}, b"abc")[:-1])]
        [{'n': 1}]
    """
    text = json.dumps(head, separators=(",", ":")).encode()
    return _START.pack(MAGIC, len(text), len(body), zlib.crc32(text), zlib.crc32(body)) + text + body


def read_frames(data: memoryview | bytes, begin: int = 0) -> Iterator[Frame]:
    """Find the frames of a file, up to the first that was not written to its end.

    Args:
        data: The file.
        begin: Where the first frame begins.

    Raises:
        ArtefactError: If what stands there is no frame.
    """
    while begin < len(data):
        start = bytes(data[begin : begin + _START.size])
        if not start.startswith(MAGIC[: len(start)]):
            raise ArtefactError(f"no answers of a teacher, or of another version: {start[:8]!r} at byte {begin}")
        if len(start) < _START.size:
            return
        _, head_size, body_size, head_checksum, checksum = _START.unpack(start)
        middle = begin + _START.size + head_size
        text = bytes(data[begin + _START.size : middle])
        if middle + body_size > len(data) or zlib.crc32(text) != head_checksum:
            return
        yield Frame(json.loads(text), middle, middle + body_size, checksum)
        begin = middle + body_size
