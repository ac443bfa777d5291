"""Ranges of a network's activations, by the name of their producer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.functional import value_range
from lightning_optim.quantization.observer.base import Observer, ObserverInput
from lightning_optim.quantization.observer.functional import NUM_BINS, count_values, exponent_of, widen_bins
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.simulation.activation_quantizers import ActivationQuantizers


@final
class Ranges:
    """Ranges that the observers of all activations have seen, and the scales that follow.

    Within a batch, ranges, and histograms if the observer needs them, are only collected. ``merge`` folds them in at
    its end: until then every process of a job quantizes alike.

    Args:
        quantizers: Turn a range into a scale and a zero point; one quantizer is that of all activations.
        observer: Turns what many batches show into one range.

    Example:
        >>> from lightning_optim.quantization import Affine, MinMax
        >>> ranges = Ranges(Affine(), MinMax())
        >>> for batch in (torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 4.0])):
        ...     _ = ranges.observe("layer:conv2d", batch)
        ...     ranges.register(ranges.new_keys)
        ...     ranges.merge(ranges.message())
        >>> ranges.range_of("layer:conv2d")
        (-1.0, 4.0)
        >>> ranges.qparams("layer:conv2d", torch.device("cpu"))
        (tensor(0.0196), tensor(51.))
    """

    def __init__(self, quantizers: ActivationQuantizers | Quantizer, observer: Observer) -> None:
        self._quantizers = ActivationQuantizers(quantizers) if isinstance(quantizers, Quantizer) else quantizers
        self._state = observer.start()
        self._places: dict[str, int] = {}
        self._counts_values = observer.needs is ObserverInput.HISTOGRAM
        self._batch: dict[str, tuple[Tensor, Tensor]] = {}
        self._counts: dict[str, tuple[Tensor, Tensor]] = {}
        self._qparams: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}
        self._clipped: tuple[Tensor, Tensor] | None = None
        self._ranged: set[str] = set()
        self._is_ranged_known = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Every activation that has a place in the flat message between processes."""
        return tuple(self._places)

    @property
    def new_keys(self) -> tuple[str, ...]:
        """Activations seen in this batch for the first time, in order of their names."""
        return tuple(sorted(self._batch.keys() - self._places.keys()))

    @property
    def broken_keys(self) -> tuple[str, ...]:
        """Activations that held NaN or infinities in this batch, in the order of the forward pass."""
        return tuple(key for key, ends in self._batch.items() if not torch.stack(ends).isfinite().all())

    def observe(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Widen this batch's range of one activation by what a tensor holds, and return the tensor's own range."""
        if not tensor.numel():
            return None
        low, high = value_range(tensor)
        self._widen(key, low, high)
        if self._counts_values:
            self._count(key, tensor)
        return low, high

    def _widen(self, key: str, low: Tensor, high: Tensor) -> None:
        seen = self._batch.get(key)
        if seen is not None:
            low, high = torch.minimum(low, seen[0]), torch.maximum(high, seen[1])
        self._batch[key] = (low.float(), high.float())

    def widen(self, keys: Sequence[str], low: Tensor, high: Tensor) -> None:
        """Widen this batch's ranges of some activations by their smallest and largest values, each ``[K]``."""
        for key, smallest, largest in zip(keys, low.clone().unbind(), high.clone().unbind(), strict=True):
            self._widen(key, smallest, largest)

    def stacked_qparams(self, keys: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return scales and zero points of activations that have a range, each ``[N]``, without gradient."""
        pairs = [self.qparams(key, device) for key in keys]
        scales, zero_points = zip(*(pair for pair in pairs if pair is not None), strict=True)
        return torch.stack(scales).detach(), torch.stack(zero_points).detach()

    def _count(self, key: str, tensor: Tensor) -> None:
        exponent = exponent_of(*self._batch[key])
        counts = count_values(tensor, exponent)
        if key in self._counts:
            past, past_exponent = self._counts[key]
            counts = counts + widen_bins(past.unsqueeze(0), past_exponent.unsqueeze(0), exponent.unsqueeze(0))[0]
        self._counts[key] = (counts, exponent)

    def reset(self, keys: Collection[str]) -> None:
        """Forget what was seen of activations, which stand for something else from now on."""
        known = [self._places[key] for key in keys if key in self._places]
        self._batch = {key: ends for key, ends in self._batch.items() if key not in keys}
        self._counts = {key: counts for key, counts in self._counts.items() if key not in keys}
        if known:
            self._state.reset(known)
            self._qparams, self._clipped = {}, None
            self._ranged -= set(keys)

    def unite(self, keys: Iterable[str]) -> None:
        """Let ranges cover all that is seen of activations which come about in several ways."""
        self.register(tuple(keys))
        self._state.unite([self._places[key] for key in keys])

    def register(self, keys: tuple[str, ...]) -> None:
        """Give activations a place in the flat message; the same keys in the same order on every process."""
        for key in keys:
            self._places.setdefault(key, len(self._places))
        self._state.grow(len(self._places))
        self._is_ranged_known = False

    def message(self, device: torch.device | None = None) -> Tensor:
        """Return this batch's ranges as ``[-low, high]``, ``[2 * N]``, whose maximum over processes is their union.

        What was not seen, or holds NaN or infinities, is ``-inf``.
        """
        if device is None:
            device = next((low.device for low, _ in self._batch.values()), torch.device("cpu"))
        if not self._places:
            return torch.empty(0, device=device)
        nothing = torch.full((), torch.inf, device=device), torch.full((), -torch.inf, device=device)
        ends = zip(*(self._batch.get(key, nothing) for key in self._places), strict=True)
        low, high = (torch.stack([end.to(device) for end in each]) for each in ends)
        vector = torch.cat([-low, high])
        return torch.where(vector.isfinite(), vector, nothing[1])

    def merge(self, message: Tensor, add: Callable[[Tensor], Tensor] | None = None) -> None:
        """Fold in a batch, and forget it.

        Args:
            message: Its ranges, as ``message`` gave them.
            add: Sums a tensor over all processes; for histograms, which travel in one flat message of their own.
        """
        if self._places:
            ends = message.view(2, -1)  # what lacks one end counts as unseen
            negated, high = ends.masked_fill(ends.isinf().any(0), -torch.inf)
            low = -negated
            counts = self._histograms(low, high) if self._counts_values else None
            self._state.update(low, high, counts if counts is None or add is None else add(counts))
            self._qparams, self._clipped, self._is_ranged_known = {}, None, False
        self.discard()

    def _histograms(self, low: Tensor, high: Tensor) -> Tensor:
        """This batch's histograms, ``[N, B]``, over the spans of the ranges that all processes saw.

        What is not finite here has none, whatever the others saw.
        """
        zero = torch.zeros((), dtype=torch.long, device=low.device)
        counts, exponents = [], []
        for key in self._places:
            held, exponent = self._counts.get(key, (zero.expand(NUM_BINS), zero))
            is_finite = torch.stack(self._batch[key]).isfinite().all() if key in self._batch else zero
            counts.append((held * is_finite).to(low.device))
            exponents.append(exponent.to(low.device))
        return widen_bins(torch.stack(counts), torch.stack(exponents), exponent_of(low, high))

    def discard(self) -> None:
        """Forget what this batch showed."""
        self._batch, self._counts = {}, {}

    def has(self, key: str) -> bool:
        """Whether an activation has a range."""
        return key in self._find_ranged()

    def qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point of an activation as scalars on a device, or ``None`` if it has no range yet."""
        if key not in self._places:
            return None
        learned = self._quantizers.learned_qparams(key, device)
        if learned is not None:
            return learned
        if (key, device) not in self._qparams:
            self._refresh(device)
        return self._qparams.get((key, device))

    def range_of(self, key: str) -> tuple[float, float]:
        """Return the range that an activation's integers are to cover; that of what was learned, if anything was."""
        learned = self._quantizers.learned_qparams(key, torch.device("cpu"))
        if learned is not None:
            scale, zero_point = (float(value.detach()) for value in learned)
            scheme = self._quantizers.quantizer_of(key).scheme
            return (scheme.qmin - zero_point) * scale, (scheme.qmax - zero_point) * scale
        place = self._places[key]
        low, high = self._find_clipped()
        return float(low[place]), float(high[place])

    def _find_clipped(self) -> tuple[Tensor, Tensor]:
        if self._clipped is None:
            groups = self._places_by_quantizer()
            low, high = self._state.clipped(next(iter(groups)))
            for quantizer in list(groups)[1:]:
                places, others = groups[quantizer], self._state.clipped(quantizer)
                low, high = low.clone(), high.clone()
                low[places], high[places] = others[0][places], others[1][places]
            self._clipped = low, high
        return self._clipped

    def _places_by_quantizer(self) -> dict[Quantizer, list[int]]:
        places: dict[Quantizer, list[int]] = {}
        for key, place in self._places.items():
            places.setdefault(self._quantizers.quantizer_of(key), []).append(place)
        return places

    def _find_ranged(self) -> set[str]:
        # A range never gets lost by itself: an accelerator is asked until all are there, and once a batch.
        if not self._is_ranged_known and len(self._ranged) < len(self._places):
            seen = torch.isfinite(self._state.low).tolist()
            self._ranged = {key for key, place in self._places.items() if seen[place]}
        self._is_ranged_known = True
        return self._ranged

    def _refresh(self, device: torch.device) -> None:
        low, high = (end.to(device) for end in self._find_clipped())
        keys, seen = list(self._places), self._find_ranged()
        for quantizer, places in self._places_by_quantizer().items():
            scales, zero_points = (values.unbind() for values in quantizer.qparams(low, high))
            known = [place for place in places if keys[place] in seen]
            if quantizer.scheme.is_binary:
                _check_signs(quantizer, {keys[place]: (low[place], high[place]) for place in known})
            self._qparams.update({(keys[place], device): (scales[place], zero_points[place]) for place in known})

    def state_dict(self) -> dict[str, Any]:
        """Return keys and observers' state, as primitives and tensors on the CPU."""
        tensors = {name: tensor.cpu() for name, tensor in self._state.state_dict().items()}
        return {"keys": list(self._places), "observer": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._places = {key: place for place, key in enumerate(state["keys"])}
        self._state.load_state_dict(dict(state["observer"]))
        self._qparams, self._clipped, self._ranged, self._is_ranged_known = {}, None, set(), False
        self.discard()


def _check_signs(quantizer: Quantizer, ends: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Refuse activations of which nothing would be left but one value."""
    for key, (low, high) in ends.items():
        if low >= 0 or high <= 0:
            raise ValueError(
                f"{type(quantizer).__name__} keeps the sign alone, and {key} has but one: it lies in "
                f"[{float(low):.4g}, {float(high):.4g}]. Give its layer another activation_quantizer in layers, such "
                "as Affine, or let the ReLU go"
            )
