"""Mixing of batches: its settings, and what is drawn for each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from lightning_optim.checked import by_key
from lightning_optim.errors import SampleError
from lightning_optim.regularization.batch_entries import find_entries
from lightning_optim.regularization.draws import random_for
from lightning_optim.regularization.mixed_batch import MixedBatch
from lightning_optim.regularization.mixing.base import Mixing
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.factor import Factor, as_factor, factor_at

LabelMode = Literal["mix_loss", "soft"]


@final
class BatchMixing:
    """Settings of what batches become.

    Args:
        mixing: One mixing, whose key is then its class name in snake case, or several by key: for each batch, one of
            those that combine samples is drawn.
        labels: How a training step is told of two labels for a sample.
        probability: Share of the batches that are mixed, in ``[0, 1]``: a number, or a schedule.
        input_keys: Keys or places of the inputs in a batch; none finds them.
        label_keys: The same for labels.
        seed: Seeds what is drawn.

    Raises:
        TypeError: If a mixing or the probability is of another kind.
        ValueError: If a value is out of range, or a mixing cannot be told to a training step in this way.
    """

    def __init__(
        self,
        mixing: Mixing | Mapping[str, Mixing],
        labels: LabelMode,
        probability: Factor,
        input_keys: Sequence[str | int],
        label_keys: Sequence[str | int],
        seed: int,
    ) -> None:
        self.mixing: dict[str, Mixing] = by_key("mixing", mixing, Mixing, "mixing")  # type: ignore[type-abstract]
        self.labels, self.probability, self.seed = labels, _as_probability(probability), seed
        self.input_keys, self.label_keys = tuple(map(str, input_keys)), tuple(map(str, label_keys))
        hard = next((key for key, each in self.mixing.items() if each.needs_float_labels), None)
        if hard is not None and labels != "soft":
            raise ValueError(
                f"mixing {hard!r} ({type(self.mixing[hard]).__name__}) changes labels alone, which labels='mix_loss' "
                "cannot tell a training step: set labels='soft', or give the loss its own smoothing, as "
                "nn.CrossEntropyLoss(label_smoothing=...)"
            )

    def __repr__(self) -> str:
        keys = (self.input_keys, self.label_keys)
        return f"BatchMixing({self.mixing}, {self.labels!r}, {self.probability}, {keys}, {self.seed})"

    @property
    def softening(self) -> tuple[Mixing, ...]:
        """What changes labels before samples are combined."""
        return tuple(self.mixing.values())

    def is_due(self, number: int, progress: float) -> bool:
        """Whether a batch is mixed: drawn alike on all ranks, so that all of them do the same with it.

        Args:
            number: Number of the batch in the fit.
            progress: How far through the window training is.
        """
        return random_for("mixed", self.seed, number).random() < factor_at(self.probability, progress)

    def draw(self, batch: Any, number: int, rank: int) -> MixedBatch:
        """Mix a batch.

        Args:
            batch: The batch.
            number: Its number in the fit.
            rank: The rank that trains on it.

        Raises:
            SampleError: If it is not clear what its inputs and labels are, or they cannot be mixed.
        """
        combining = [each for each in self.mixing.values() if not each.needs_float_labels]
        entries = find_entries(batch, self.input_keys, self.label_keys, needs_inputs=bool(combining))
        random = random_for("mixing", self.seed, number, rank)
        order = random.sample(range(entries.size), entries.size)
        if not combining:
            return MixedBatch(batch, entries, order, None)
        mixing = random.choice(combining)
        mask = next((name for name, each in entries.labels.items() if each.ndim > 2), None)
        if mask is not None and not all(each.mixes_masks for each in combining):
            raise SampleError(
                f"labels that cannot be mixed: {mask!r} has a label for each pixel, "
                f"{list(entries.labels[mask].shape)}, and CutMix mixes one label of a sample by area; use Mixup"
            )
        return MixedBatch(batch, entries, order, mixing.draw(random, [*entries.inputs.values()]))


def _as_probability(value: Any) -> Factor:
    factor = as_factor(value, "probability")
    ends = [factor_at(factor, progress) for progress in (0.0, 1.0)]
    if not all(0.0 <= each <= 1.0 for each in ends):
        raise ValueError(f"probability must lie in [0, 1], got {value!r}")
    if not isinstance(factor, Schedule) and factor == 0.0:
        raise ValueError("probability is 0, so there would be nothing to do: raise it")
    return factor
