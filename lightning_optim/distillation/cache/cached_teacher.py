"""Cached teacher: answers from a store, and from the teacher what the store lacks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.distillation.cache.answer_cache import AnswerCache
from lightning_optim.distillation.cache.independence import check_independent, is_doubtful
from lightning_optim.distillation.cache.kept import KeptAnswers
from lightning_optim.distillation.cache.sample import content_keys, index_keys, num_samples, select_samples
from lightning_optim.distillation.cache.store import AnswerStore
from lightning_optim.distillation.loss.output import entry_of
from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.errors import ArtefactError, SampleError, TeacherError
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.shard import is_sharded

# A complete cache is of other data if none of the first samples is in it. Of data that are no more than the answers, a
# batch is enough, so that the student has learned nothing yet; of more, that many could all be new by chance.
_FEW, _MANY = 8, 64


@final
class CachedTeacher:
    """Cached teacher.

    Args:
        teacher: The teacher, where it is to run.
        cache: Where its answers lie.
        kept: What is kept of them.
        num_data: How many samples there are to train with; ``None`` if that is not known.

    Raises:
        ArtefactError: If what lies there is of another teacher, or lacks what is needed.
        ValueError: If the teacher changes while the student learns, or is sharded.
    """

    def __init__(self, teacher: LoadedTeacher, cache: AnswerCache, kept: KeptAnswers, num_data: int | None) -> None:
        _check_is_constant(teacher)
        self._teacher, self._key, self._kept = teacher, cache.key, kept
        found_by = "inputs" if cache.key is None else "index"
        self._own: dict[str, Any] = {"teacher": teacher.fingerprint(), "key": found_by, "top_k": kept.top_k}
        self.store = AnswerStore(Path(cache.folder).expanduser(), self._check)
        self._is_believed = not self.store.is_complete
        self._num_first, is_more = 0, num_data is None or num_data > len(self.store)
        self._num_needed = _MANY if is_more else _FEW
        self._is_doubtful = is_doubtful(teacher.module)
        self.num_seen = self.num_missed = 0

    def __call__(self, student: Recording, turn: int, batch: Any) -> Recording:
        """Answer a call of the student.

        Args:
            student: The call.
            turn: Which of the step's calls it is, from 0.
            batch: The batch.

        Raises:
            ArtefactError: If the cache is of other data.
            TeacherError: If the teacher's answer cannot be kept.
        """
        keys = self._keys(student, turn, batch)
        found = self.store.find(keys)
        missing = {key: row for row, key in enumerate(keys) if not found[row]}
        self._note(len(keys), len(missing))
        if missing:
            tensors = self._ask(student, batch, [*missing.values()])
            self._own["fields"] = sorted(tensors)
            self.store.put([*missing], tensors)
        device = next(iter(tensors_of(student.call.output))).device
        return self._kept.join(student.call, {name: each.to(device) for name, each in self.store.read(keys).items()})

    def flush(self) -> None:
        """Write what was asked, once the step has ended well: a teacher that no loss can learn from is not kept."""
        self.store.flush(self._own)

    def _keys(self, student: Recording, turn: int, batch: Any) -> list[bytes]:
        count = num_samples(student.call)
        if self._key is None:
            return content_keys(self._teacher.inputs_for(student.call, batch), count)
        index = entry_of(batch, self._key)
        is_index = isinstance(index, Tensor) and not (index.is_floating_point() or index.dtype == torch.bool)
        if not (is_index and index.shape == (count,)):
            came = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            raise SampleError(
                f"the cache's key={self._key!r} must lead to an integer for each of the {count} samples of a batch, "
                f"got {came}: set key to where they are, or to null"
            )
        return index_keys(index, turn)

    def _note(self, num_samples: int, num_missing: int) -> None:
        """Count, and refuse a complete cache in which none of the first samples is, before anything is written."""
        self.num_seen += num_samples
        self.num_missed += num_missing
        if self._is_believed:
            return
        self._num_first += num_samples
        self._is_believed = num_missing < num_samples
        if not self._is_believed and self._num_first >= self._num_needed:
            raise ArtefactError(
                f"{self.store.folder} holds a teacher's answers to other data: none of the first {self._num_first} "
                "samples is among them. Give another folder; or, if the data are the same, take augmentation at random "
                "out, give inputs in the number format in which they were written, or set key to the samples' own index"
            )

    def _ask(self, student: Recording, batch: Any, rows: list[int]) -> dict[str, Tensor]:
        """Ask the teacher for some samples of a call; for all of them if it takes no smaller batch."""
        if self._is_doubtful:
            check_independent(self._teacher, student.call, batch)
            self._is_doubtful = False
        if len(rows) < num_samples(student.call):
            with suppress(SampleError, TeacherError):
                return self._tensors(student, self._teacher(*select_samples(student.call, batch, rows)), len(rows))
        tensors = self._tensors(student, self._teacher(student.call, batch), num_samples(student.call))
        return {name: tensor[rows] for name, tensor in tensors.items()}

    def _tensors(self, student: Recording, answer: Recording, count: int) -> dict[str, Tensor]:
        tensors = self._kept.split(student, answer)
        for name, tensor in tensors.items():
            if not tensor.ndim or len(tensor) != count:
                raise TeacherError(
                    f"the teacher's {name} has shape {list(tensor.shape)} for {count} samples: answers are kept by "
                    "sample, so their first axis must be that of the samples; distil without a cache"
                )
        return tensors

    def _check(self, head: Mapping[str, Any]) -> str | None:
        """What answers lack that is needed; refuse those of another teacher."""
        if head.get("teacher") != self._own["teacher"]:
            raise ArtefactError(
                "the answers in it are of another teacher, of other weights or in another number format: give "
                "another folder, delete the old one, or take the old teacher"
            )
        if head.get("key") != self._own["key"]:
            raise ArtefactError(
                f"samples in it are found by {head.get('key')}, and not by {self._own['key']}: set key as it was, or "
                "give another folder"
            )
        return self._kept.lacking(head.get("top_k"), head.get("fields", ()))


def _check_is_constant(teacher: LoadedTeacher) -> None:
    learns = any(weight.requires_grad for weight in teacher.module.parameters())
    if learns or any(copied.follows for copied in teacher.copies):
        raise ValueError(
            "a teacher that learns or follows the student answers otherwise after each step, so nothing of it can be "
            "cached: distil without a cache"
        )
    if any(is_sharded(weight) for weight in teacher.module.parameters()):
        raise ValueError(
            "a sharded teacher runs on all ranks at once, but with a cache each rank asks for what it lacks: distil "
            "without a cache, or from a teacher that is whole on each rank"
        )
