"""Store of answers: a folder of shards, and where in them each sample's record is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from lightning_optim.atomic import write_atomic
from lightning_optim.distillation.cache.frame import read_frames
from lightning_optim.distillation.cache.layout import Layout
from lightning_optim.distillation.cache.shard import SUFFIX, Block, ShardReader, ShardWriter, make_block
from lightning_optim.errors import ArtefactError

VERSION = 1
_COMPLETE = "complete.json"


@final
class AnswerStore:
    """Store of answers.

    Args:
        folder: The folder.
        check: Refuses the description of a shard by an ArtefactError, or says what its answers lack; ``None``: nothing.

    Raises:
        ArtefactError: If a shard cannot be read, or is of another version, or all of them lack something.

    Example:
        >>> import tempfile, torch
        >>> store = AnswerStore(Path(tempfile.mkdtemp()), lambda _: None)
        >>> store.put([b"0123456789abcdef"], {"logits": torch.tensor([[1.0, 2.0]])})
        >>> store.flush({})
        >>> store.read([b"0123456789abcdef"]), store.find([b"another sample.."])
        ({'logits': tensor([[1., 2.]])}, [False])
        >>> store.close()
    """

    def __init__(self, folder: Path, check: Callable[[Mapping[str, Any]], str | None]) -> None:
        self.folder, self._check = folder, check
        self._shards: dict[Path, ShardReader] = {}
        self._places: dict[bytes, tuple[Block, int]] = {}
        self._lacking: dict[Path, str] = {}
        self._writer: ShardWriter | None = None
        self._staged: list[tuple[bytes, Sequence[bytes]]] = []
        self.refresh()
        if self._lacking and not self._places:
            path, lack = next(iter(self._lacking.items()))
            raise ArtefactError(f"{path}: {lack}; give another folder")
        self.num_samples_of_epoch = None if self._lacking else self._read_complete()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_complete(self) -> bool:
        """Whether some fit has gone through a whole epoch, and all that it has written is there for this one."""
        return self.num_samples_of_epoch is not None

    def refresh(self) -> None:
        """Find what other processes have written since."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            self._read_on(path)

    def find(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether there is a record of each sample."""
        return [self._find(key) is not None for key in keys]

    def read(self, keys: Sequence[bytes]) -> dict[str, Tensor]:
        """The tensors of samples that are there, by name.

        Args:
            keys: Keys of the samples.

        Raises:
            ValueError: If their shapes differ.
        """
        places = [self._places[key] for key in keys]
        layout = places[0][0].layout
        odd = next((block.layout for block, _ in places if block.layout != layout), None)
        if odd is not None:
            raise ValueError(
                f"answers to samples of one batch have other shapes, {_shapes(layout)} and {_shapes(odd)}: give the "
                "network inputs of one shape, such as texts that are padded to one length"
            )
        records = np.empty((len(places), layout.size), np.uint8)
        for row, (block, place) in enumerate(places):
            records[row] = block.record(place)
        return layout.unpack(records)

    def put(self, keys: Sequence[bytes], tensors: Mapping[str, Tensor]) -> None:
        """Take records of samples in, to be read at once and written by ``flush``.

        Args:
            keys: Their keys.
            tensors: What to keep, by name; the first axis is that of the samples.
        """
        layout = Layout.of(tensors)
        data = make_block(keys, layout, layout.pack(tensors))
        self._staged.append((data, keys))
        block = Block(memoryview(data), next(read_frames(data)))
        for row, key in enumerate(keys):
            self._places[key] = (block, row)

    def flush(self, description: Mapping[str, Any]) -> None:
        """Write what has been put in.

        Args:
            description: What all records that this store writes have in common; it is written once.
        """
        if not self._staged:
            return
        if self._writer is None:
            self._writer = ShardWriter(self.folder, {"version": VERSION, **description})
        self._writer.write(b"".join(data for data, _ in self._staged))
        for _, keys in self._staged:
            for key in keys:
                self._places.pop(key, None)
        self._staged = []
        self._read_on(self._writer.path)

    def mark_complete(self, num_samples: int) -> None:
        """Take note that all of an epoch is there; ranks that do so at once write the same.

        Args:
            num_samples: Its samples.
        """
        if num_samples != self.num_samples_of_epoch:
            write_atomic(self.folder / _COMPLETE, json.dumps({"samples": num_samples}).encode())
            self.num_samples_of_epoch = num_samples

    def close(self) -> None:
        """Close the file that is written, without what is not written yet; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _find(self, key: bytes) -> tuple[Block, int] | None:
        place = self._places.get(key)
        if place is not None and not place[0].is_sound:
            del self._places[key]
            return None
        return place

    def _read_on(self, path: Path) -> None:
        if path not in self._shards:
            self._shards[path] = ShardReader(path)
        shard = self._shards[path]
        is_new = shard.head is None
        blocks = shard.read_on()
        if is_new and shard.head is not None:
            self._check_head(path, shard.head)
        if path in self._lacking:
            return
        for block in blocks:
            for row, key in enumerate(block.keys()):
                self._places.setdefault(key, (block, row))

    def _check_head(self, path: Path, head: Mapping[str, Any]) -> None:
        if head.get("version") != VERSION:
            raise ArtefactError(
                f"{path} holds answers in version {head.get('version')} of their format, and this is version "
                f"{VERSION}; delete it, or give another folder"
            )
        try:
            lack = self._check(head)
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from error
        if lack is not None:
            self._lacking[path] = lack

    def _read_complete(self) -> int | None:
        path = self.folder / _COMPLETE
        if not path.is_file():
            return None
        try:
            return int(json.loads(path.read_bytes())["samples"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{path} cannot be read; delete it, and an epoch will write it again") from error


def _shapes(layout: Layout) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, _, shape in layout.fields)
