"""Shards: files of answers, each written by one process and read by all."""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from lightning_optim.distillation.cache.frame import Frame, SupportsSlices, make_frame, read_frames
from lightning_optim.distillation.cache.layout import Bytes, Layout
from lightning_optim.distillation.cache.sample import KEY_SIZE
from lightning_optim.errors import ArtefactError

SUFFIX = ".answers"


@final
class ShardWriter:
    """Writer of one shard. What it has written is there even if the process is killed a moment later.

    Args:
        folder: Where the file is made, under a name that nobody else takes.
        head: What all answers in it have in common.
    """

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
        self._file = self.path.open("xb")
        self.write(make_frame(head))

    def write(self, frames: bytes) -> None:
        """Write frames, such as ``make_block`` makes."""
        self._file.write(frames)
        self._file.flush()

    def close(self) -> None:
        """Close the file, once all of it is on the disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def make_block(keys: Sequence[bytes], layout: Layout, records: Bytes) -> bytes:
    """Return the bytes of records and of the keys of their samples.

    Args:
        keys: One for each record.
        layout: Layout of the records.
        records: ``[samples, size]``.
    """
    return make_frame({"samples": len(keys), "layout": layout.fields}, b"".join(keys) + records.tobytes())


@final
class MappedFile:
    """A file in memory, mapped anew when it has grown; one map, however often that is.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = memoryview(b"")

    def grow(self) -> memoryview:
        """Map what is there by now."""
        size = self.path.stat().st_size
        if size > len(self._data):
            with self.path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        return self._data

    def __getitem__(self, part: slice) -> memoryview:
        return self._data[part]


@final
class Block:
    """Records that were written together.

    Args:
        data: The file, or what is to be written into it.
        frame: The frame that holds them.

    Raises:
        ValueError: If they are not of the size that is said.
    """

    def __init__(self, data: SupportsSlices, frame: Frame) -> None:
        self.layout = Layout.read(frame.head["layout"])
        self.num_samples = int(frame.head["samples"])
        self._size = self.layout.size
        if self.num_samples * (KEY_SIZE + self._size) != frame.end - frame.begin:
            raise ValueError("records are not of the size that their layout says")
        self._data, self._frame = data, frame
        self._records = frame.begin + KEY_SIZE * self.num_samples
        self._is_sound: bool | None = None

    @property
    def is_sound(self) -> bool:
        """Whether it is what was written: a machine that went down may have left something else. Checked once."""
        if self._is_sound is None:
            self._is_sound = self._frame.is_sound(self._data)
        return self._is_sound

    def keys(self) -> list[bytes]:
        """Keys of the samples."""
        packed = bytes(self._data[self._frame.begin : self._records])
        return [packed[start : start + KEY_SIZE] for start in range(0, len(packed), KEY_SIZE)]

    def record(self, row: int) -> memoryview:
        """The record of one sample."""
        start = self._records + row * self._size
        return self._data[start : start + self._size]


@final
class ShardReader:
    """Reader of one shard, which may still grow.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.head: dict[str, Any] | None = None
        self._file, self._end = MappedFile(path), 0

    def read_on(self) -> list[Block]:
        """Find what has been written since the last time, as far as it was written to its end.

        Raises:
            ArtefactError: If the file holds no answers.
        """
        blocks = []
        try:
            for frame in read_frames(self._file.grow(), self._end):
                if self.head is None:
                    self.head = frame.head
                else:
                    blocks.append(Block(self._file, frame))
                self._end = frame.end
        except (ArtefactError, KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"{self._file.path} cannot be read as a teacher's answers ({error}); delete it, or give another folder"
            ) from error
        return blocks
