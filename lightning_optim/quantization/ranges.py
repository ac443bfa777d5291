"""The ranges of a network's activations, by the name of their producer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.observer.base import Observer
from lightning_optim.quantization.quantizer.base import Quantizer


@final
class Ranges:
    """What the observers of all activations have seen, and the scales that follow.

    Within a batch, ranges are only collected. ``merge`` folds them in at its end: until then every process of a job
    quantizes alike.

    Args:
        quantizer: Turns a range into a scale and a zero point.
        observer: Turns the ranges of many batches into one.
    """

    def __init__(self, quantizer: Quantizer, observer: Observer) -> None:
        self._quantizer, self._state = quantizer, observer.start()
        self._places: dict[str, int] = {}
        self._batch: dict[str, tuple[Tensor, Tensor]] = {}
        self._qparams: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}
        self._ranged: set[str] = set()

    @property
    def keys(self) -> tuple[str, ...]:
        """Every activation that has a place in the flat message between processes."""
        return tuple(self._places)

    @property
    def new_keys(self) -> tuple[str, ...]:
        """Activations seen in this batch for the first time, in order of their names."""
        return tuple(sorted(self._batch.keys() - self._places.keys()))

    def observe(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Widen this batch's range of one activation by what a tensor holds, and return the tensor's own range."""
        if not tensor.numel():
            return None
        ends = low, high = torch.aminmax(tensor.detach())
        if key in self._batch:
            seen = self._batch[key]
            low, high = torch.minimum(low, seen[0]), torch.maximum(high, seen[1])
        self._batch[key] = (low.float(), high.float())
        return ends

    def register(self, keys: tuple[str, ...]) -> None:
        """Give activations a place in the flat message; the same keys in the same order on every process."""
        for key in keys:
            self._places.setdefault(key, len(self._places))
        self._state.grow(len(self._places))

    def message(self, device: torch.device | None = None) -> Tensor:
        """Return this batch's ranges as ``[-low, high]``, ``[2 * N]``, whose maximum over processes is their union.

        What was not seen, or holds NaN or infinities, is ``-inf``.
        """
        if device is None:
            device = next((low.device for low, _ in self._batch.values()), torch.device("cpu"))
        unseen = torch.full((), -torch.inf, device=device)
        pairs = [self._batch.get(key) for key in self._places]
        flat = [unseen if pair is None else -pair[0].to(device) for pair in pairs]
        flat += [unseen if pair is None else pair[1].to(device) for pair in pairs]
        vector = torch.stack(flat) if flat else torch.empty(0, device=device)
        return torch.where(vector.isfinite(), vector, unseen)

    def merge(self, message: Tensor) -> None:
        """Fold in the ranges of a batch, as ``message`` gave them, and forget the batch."""
        self._batch = {}
        if not self._places:
            return
        negated, high = message.chunk(2)
        unseen = torch.isinf(negated) | torch.isinf(high)
        self._state.update((-negated).masked_fill(unseen, torch.inf), high.masked_fill(unseen, -torch.inf))
        self._qparams = {}

    def discard(self) -> None:
        """Forget what this batch showed."""
        self._batch = {}

    def has(self, key: str) -> bool:
        """Whether an activation has a range."""
        return key in self._find_ranged()

    def qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point of an activation as scalars on a device, or ``None`` if it has no range yet."""
        if key not in self._places:
            return None
        if (key, device) not in self._qparams:
            self._refresh(device)
        return self._qparams.get((key, device))

    def range_of(self, key: str) -> tuple[float, float]:
        """Return the range of an activation."""
        place = self._places[key]
        return float(self._state.low[place]), float(self._state.high[place])

    def _find_ranged(self) -> set[str]:
        if len(self._ranged) < len(
            self._places
        ):  # a range never gets lost: an accelerator is asked until all are there
            seen = torch.isfinite(self._state.low).tolist()
            self._ranged = {key for key, place in self._places.items() if seen[place]}
        return self._ranged

    def _refresh(self, device: torch.device) -> None:
        low, high = self._state.low.to(device), self._state.high.to(device)
        scales, zero_points = self._quantizer.qparams(low, high)
        seen = self._find_ranged()
        pairs = zip(self._places, scales.unbind(), zero_points.unbind(), strict=True)
        self._qparams.update({(key, device): (scale, zero) for key, scale, zero in pairs if key in seen})

    def state_dict(self) -> dict[str, Any]:
        """Return keys and observers' state, as primitives and tensors on the CPU."""
        tensors = {name: tensor.cpu() for name, tensor in self._state.state_dict().items()}
        return {"keys": list(self._places), "observer": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._places = {key: place for place, key in enumerate(state["keys"])}
        self._state.load_state_dict(dict(state["observer"]))
        self._batch, self._qparams, self._ranged = {}, {}, set()
