"""A batch whose samples are mixed, with the labels that a training step is to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_optim.errors import SampleError
from lightning_optim.regularization.batch_entries import BatchEntries
from lightning_optim.regularization.functional import mix_samples
from lightning_optim.regularization.mixing.base import Blend, Mixing
from lightning_optim.surgery.containers import map_tensors
from lightning_optim.surgery.torch_private import in_place_version


@final
class MixedBatch:
    """A batch whose samples are mixed, with the labels of the samples, of their partners, or both as probabilities.

    Args:
        batch: The batch; it is left as it is.
        entries: Its inputs and labels.
        order: Place of each sample's partner in the batch.
        blend: How samples are combined; ``None`` if they are not.

    Example:
        >>> from functools import partial
        >>> blend = Blend(0.75, partial(mix_samples, weight=0.75))
        >>> x, y = torch.tensor([[0.0], [8.0]]), torch.tensor([1, 0])
        >>> mixed = MixedBatch((x, y), BatchEntries({"0": x}, {"1": y}), [1, 0], blend)
        >>> mixed.with_partners_labels()
        (tensor([[2.],
                [6.]]), tensor([0, 1]))
    """

    def __init__(self, batch: Any, entries: BatchEntries, order: Sequence[int], blend: Blend | None) -> None:
        self._batch, self._entries, self._blend = batch, entries, blend
        self._order = torch.tensor(order)
        # Taken now: a training step may change labels in place.
        self._others = {id(label): self._partners_of(label) for label in entries.labels.values()}
        self._mixed: dict[int, tuple[Tensor, int]] = {}

    @property
    def weight(self) -> float:
        """Share of a sample's own label."""
        return 1.0 if self._blend is None else self._blend.weight

    @property
    def labels_differ(self) -> bool:
        """Whether any sample has a partner with another label."""
        return any(not torch.equal(label, self._others[id(label)]) for label in self._entries.labels.values())

    def with_own_labels(self) -> Any:
        """The mixed samples, each with its own label."""
        return self._with({})

    def with_partners_labels(self) -> Any:
        """The mixed samples, each with its partner's label."""
        return self._with(self._others)

    def with_float_labels(self, num_classes: int, mixings: Sequence[Mixing]) -> Any:
        """The mixed samples, with probabilities of the classes, ``[B, C, ...]``.

        Args:
            num_classes: How many classes there are; labels in floating point are probabilities already.
            mixings: What changes labels before they are mixed.

        Raises:
            SampleError: If a label is none of the classes.
        """
        kinds = [each.dtype for each in self._entries.inputs.values()] or [torch.float32]
        kind = torch.promote_types(torch.float32, kinds[0])
        changed = {}
        for name, label in self._entries.labels.items():
            soft = label if label.is_floating_point() else _one_hot(name, label, num_classes).to(kind)
            for mixing in mixings:
                soft = mixing.soften(soft)
            changed[id(label)] = (
                soft if self._blend is None else mix_samples(soft, self._partners_of(soft), self.weight)
            )
        return self._with(changed)

    def _with(self, labels: Mapping[int, Tensor]) -> Any:
        changed = {**self._mixed_inputs(), **labels}
        return map_tensors(lambda tensor: changed.get(id(tensor), tensor), self._batch)

    def _mixed_inputs(self) -> dict[int, Tensor]:
        """The mixed inputs; made anew where a training step has changed them in place."""
        if self._blend is None:
            return {}
        for each in self._entries.inputs.values():
            made, version = self._mixed.get(id(each), (each, -1))
            if in_place_version(made) != version:
                made = self._blend.combine(each, self._partners_of(each))
                self._mixed[id(each)] = made, in_place_version(made)
        return {key: made for key, (made, _) in self._mixed.items()}

    def _partners_of(self, samples: Tensor) -> Tensor:
        return samples[self._order.to(samples.device)]


def _one_hot(name: str, label: Tensor, num_classes: int) -> Tensor:
    if label.dtype == torch.bool:
        raise SampleError(f"labels that cannot be mixed: {name!r} is of bool; give classes, or probabilities as float")
    low, high = (int(each) for each in torch.aminmax(label))
    if low < 0 or high >= num_classes:
        raise SampleError(
            f"labels that cannot be mixed: {name!r} holds {low} to {high}, but there are "
            f"{num_classes} classes from 0 on; use labels='mix_loss' where some values are ignored, or set num_classes"
        )
    return F.one_hot(label.long(), num_classes).movedim(-1, 1)
