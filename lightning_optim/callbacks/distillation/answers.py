"""Answers to a step's calls: the teacher's own, or those of its cache, which is kept through epochs and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_optim.distillation.cache.answer_cache import AnswerCache
from lightning_optim.distillation.cache.cached_teacher import CachedTeacher
from lightning_optim.distillation.cache.kept import KeptAnswers
from lightning_optim.distillation.cache.store import AnswerStore
from lightning_optim.distillation.loss.base import Loss
from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.errors import ArtefactError

# Share of an epoch's samples that may be new although an epoch before it was whole.
_NEW = 0.01


@final
class TeacherAnswers:
    """Answers to a step's calls.

    Args:
        cache: Where they are kept; ``None`` asks the teacher every time.
        losses: What learns from them.

    Raises:
        ValueError: If a loss needs what cannot be kept.
    """

    def __init__(self, cache: AnswerCache | None, losses: Mapping[str, Loss]) -> None:
        self.cache = cache
        self._kept = None if cache is None else KeptAnswers(losses, cache.top_k)
        self._cached: CachedTeacher | None = None
        self._num_steps = self._num_before = 0
        self._has_answered = False
        self._num_of_epoch: int | None = None

    def look_at(self, places: Sequence[Place]) -> None:
        """Keep the features at these places of the teacher."""
        if self._kept is not None:
            self._kept.look_at(places)

    def begin(self, trainer: Trainer, teacher: LoadedTeacher) -> None:
        """Open the cache, in ``on_train_start``; what is answered before is neither read nor written.

        Args:
            trainer: The trainer, whose data are known.
            teacher: The teacher.

        Raises:
            ArtefactError: If it is of another teacher, or lacks what is needed.
        """
        if self.cache is not None and self._kept is not None:
            self._cached = CachedTeacher(teacher, self.cache, self._kept, _num_data(trainer))
            self._num_of_epoch = self._cached.store.num_samples_of_epoch
            self._begin_epoch(self._cached)

    def answer(
        self, teacher: LoadedTeacher, calls: Sequence[Recording], batch: Any
    ) -> list[tuple[Recording, Recording]]:
        """Each call of a step with the teacher's answer.

        Args:
            teacher: The teacher.
            calls: The calls.
            batch: The batch.
        """
        if self._cached is None:
            return [(mine, teacher(mine.call, batch)) for mine in calls]
        num_seen = self._cached.num_seen
        pairs = [(mine, self._cached(mine, turn, batch)) for turn, mine in enumerate(calls)]
        if self._has_answered:
            self._cached.num_seen = num_seen  # the step runs once more, on the same samples
        self._has_answered = True
        return pairs

    def end_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Write, and judge what is new: after batches 1, 2, 4, 8 ... and the last, on all ranks at once.

        Raises:
            ArtefactError: If more samples are new than could be in a second epoch.
        """
        cached, num_batches = self._cached, batch_idx + 1
        if cached is None:
            return
        cached.flush()
        self._num_steps += self._has_answered
        self._has_answered = False
        if not (trainer.is_last_batch or num_batches & (num_batches - 1) == 0):
            return
        counts = torch.tensor([cached.num_seen, cached.num_missed, self._num_before, self._num_steps, num_batches])
        if trainer.world_size > 1:  # which also waits for all to have written
            counts = trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum")
        num_seen, num_missed, num_before, num_steps, num_batches = map(int, counts.tolist())
        self._judge(trainer, cached.store, num_missed, num_before // trainer.world_size)
        if trainer.is_last_batch:
            self._end_epoch(trainer, cached, num_seen if num_steps == num_batches else None)

    def close(self) -> None:
        """Close the cache; a second call does nothing."""
        if self._cached is not None:
            self._cached.store.close()
            self._cached = None

    def _end_epoch(self, trainer: Trainer, cached: CachedTeacher, num_seen: int | None) -> None:
        cached.store.refresh()
        if num_seen is not None:
            self._num_of_epoch = num_seen
            if _is_all(trainer, len(cached.store)):
                cached.store.mark_complete(num_seen)
        self._begin_epoch(cached)

    def _begin_epoch(self, cached: CachedTeacher) -> None:
        self._num_before = len(cached.store)
        self._num_steps = cached.num_seen = cached.num_missed = 0

    def _judge(self, trainer: Trainer, store: AnswerStore, num_new: int, num_before: int) -> None:
        if self._num_of_epoch is None or num_new <= _NEW * self._num_of_epoch:
            return
        num_data = _num_data(trainer)
        if num_data is not None and num_before + num_new <= (1.0 + _NEW) * num_data:
            return  # samples that the epochs before have left out
        raise ArtefactError(
            f"{num_new} samples of this epoch are not in the cache {store.folder}, which has been through an epoch of "
            f"{self._num_of_epoch}: inputs of the same sample differ from epoch to epoch. Take augmentation at random "
            "out, and pad to one length; or set key to where the batch holds the samples' own index, and the answer to "
            "the first version serves all; or, where these are other samples, distil without a cache"
        )


def _num_data(trainer: Trainer) -> int | None:
    """How many different samples there are to train with, if that is known."""
    loader = trainer.train_dataloader
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    return len(dataset) if isinstance(dataset, Sized) else None


def _is_all(trainer: Trainer, num_answers: int) -> bool:
    """Whether there are answers to all data, and not to the first batches alone."""
    num_data = _num_data(trainer)
    if num_data is not None:
        return num_answers >= (1.0 - _NEW) * num_data
    limit: int | float | None = trainer.limit_train_batches
    return limit is None or (isinstance(limit, float) and limit == 1.0)
