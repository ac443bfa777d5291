"""Cache of a teacher's answers, as a setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from lightning_optim.checked import checked


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCache:
    """Cache of a teacher's answers on disk: the first epoch asks the teacher and writes, all later ones read.

    Later epochs, later fits, other students and other losses on the same outputs read what is there; the teacher is
    asked only for samples that are not. Use it where the inputs of a sample are the same in every epoch, and a teacher
    costs more than reading: for many epochs, or for a search over students.

    Each process writes a file of its own into the folder and reads all of them, so ranks must share it. A fit that is
    killed leaves what it has written; the next one goes on from there. Files hold numbers and JSON, never code. What
    another teacher has answered, or this one with other weights or in another number format, is refused, and so is a
    cache of other data.

    Args:
        folder: Where the answers lie; it is made if it is not there.
        top_k: Keep that many of the likeliest classes, and how likely all others are together: at k = 32 of 32,768
            classes 128 bytes a position and not 65,536. ``SoftTarget`` alone can learn from that, at the temperature at
            which it was written. Use it for large vocabularies and temperatures near 1: a higher one moves most of the
            probability to the others, whose shares the student is then not told. Of probabilities that fall with the
            rank as a power, 32 classes keep the direction of the gradient at temperature 1 (a cosine of 0.999), less of
            it at 2 (0.92) and little at 4 (0.32). ``None`` keeps all numbers of what losses read, outputs and features.
        key: Where the batch holds an integer for each sample, by which answers are found: an index, a key, several
            joined by dots. ``None`` finds them by a hash of what the network is given of the sample. With augmentation
            at random, inputs are never the same, and only a key finds anything: the answer to the first version.

    Raises:
        ValueError: If ``folder`` is a file, or ``top_k`` is below 1.

    Example:
        >>> AnswerCache(folder="answers", top_k=32)
        AnswerCache(folder='answers', top_k=32, key=None)
    """

    folder: str | Path
    top_k: int | None = None
    key: str | int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null to keep all numbers, got {self.top_k}")
        if Path(self.folder).expanduser().is_file():
            raise ValueError(f"folder must be a folder for answers, but {self.folder} is a file")
