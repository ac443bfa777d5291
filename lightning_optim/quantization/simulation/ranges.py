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
from lightning_optim.quantization.simulation.range_watch import INFINITE, LEAST_GROWN, NAN, Finding, RangeWatch
from lightning_optim.quantization.simulation.sentinels import sentinel_bound


@final
class Ranges:
    """Ranges that the observers of all activations have seen, and the scales that follow.

    Within a batch, ranges, and histograms if the observer needs them, are only collected. ``merge`` folds them in at
    its end: until then every process of a job quantizes alike.

    A range that a batch makes useless is told by ``findings``: the values of an activation that is new are looked at,
    later on its range is compared with that of the past.

    Args:
        quantizers: Turn a range into a scale and a zero point; one quantizer is that of all activations.
        observer: Turns what many batches show into one range.

    Attributes:
        watch: Compares batches with the past.

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
        self.watch = RangeWatch()
        self._looked: set[str] = set()
        self._apart: dict[str, Finding] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Every activation that has a place in the flat message between processes."""
        return tuple(self._places)

    @property
    def new_keys(self) -> tuple[str, ...]:
        """Activations seen in this batch for the first time, in order of their names."""
        return tuple(sorted(self._batch.keys() - self._places.keys()))

    @property
    def masked_keys(self) -> frozenset[str]:
        """New activations of sums that hold sentinels in this batch."""
        return frozenset(key for key, finding in self._apart.items() if finding.is_masked)

    @property
    def broken(self) -> dict[str, str]:
        """Activations that held NaN, or infinities that no mask can have put there, in this batch -> which of them."""
        marks = {key: float(_mark_of(*ends)) for key, ends in self._batch.items()}
        return {
            key: "NaN" if mark == NAN else "infinities"
            for key, mark in marks.items()
            if mark == NAN or (mark == INFINITE and key not in self.watch.sums)
        }

    def findings(self, *, waits: bool = True) -> list[Finding]:
        """Return what was found since the last call.

        Args:
            waits: Whether an accelerator is waited for; otherwise, its last batch is told the next time.
        """
        apart, self._apart = [*self._apart.values()], {}
        return apart + self.watch.take(waits=waits)

    def measure(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the range of a tensor, if it holds any value."""
        return value_range(tensor) if tensor.numel() else None

    def observe(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Widen this batch's range of one activation by what a tensor holds, and return the tensor's own range."""
        if not tensor.numel():
            return None
        low, high = value_range(tensor)
        if key not in self._looked:
            self.look(key, tensor, low, high)
        self._widen(key, low, high)
        if self._counts_values:
            self._count(key, tensor)
        return low, high

    def look(self, key: str, tensor: Tensor, low: Tensor, high: Tensor) -> None:
        """Look at the values of an activation, of which the smallest and the largest are known."""
        is_masked = key in self.watch.sums and sentinel_bound(tensor, ends=(low, high)) is not None
        if is_masked or sentinel_bound(tensor, LEAST_GROWN, ends=(low, high)) is not None:
            mark = float(_mark_of(low, high))
            if not mark or is_masked:
                self._apart[key] = Finding(key, float(low), float(high), mark, is_masked)

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
        self._looked -= set(keys)
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
        """Return this batch's ranges, ``[-low, high, mark]`` in ``[3 * N]``, whose maximum is the processes' union.

        What was not seen, or holds NaN or infinities, is ``-inf``; the mark tells of the latter.
        """
        if device is None:
            device = next((low.device for low, _ in self._batch.values()), torch.device("cpu"))
        if not self._places:
            return torch.empty(0, device=device)
        nothing = torch.full((), torch.inf, device=device), torch.full((), -torch.inf, device=device)
        ends = zip(*(self._batch.get(key, nothing) for key in self._places), strict=True)
        low, high = (torch.stack([end.to(device) for end in each]) for each in ends)
        was_seen = torch.tensor([key in self._batch for key in self._places]).to(device, non_blocking=True)
        marks = torch.where(was_seen, _mark_of(low, high), 0.0)
        vector = torch.cat([-low, high])
        return torch.cat([torch.where(vector.isfinite(), vector, nothing[1]), marks])

    def merge(self, message: Tensor, add: Callable[[Tensor], Tensor] | None = None) -> None:
        """Fold in a batch, and forget it.

        Args:
            message: Its ranges, as ``message`` gave them.
            add: Sums a tensor over all processes; for histograms, which travel in one flat message of their own.
        """
        if self._places:
            negated, high, marks = message.view(3, -1)
            past = self._state.low.to(message.device), self._state.high.to(message.device)
            is_masked = self.watch.judge(self.keys, (-negated, high, marks), past)
            ends = torch.stack([negated, high])  # what lacks one end counts as unseen
            negated, high = ends.masked_fill(ends.isinf().any(0) | is_masked, -torch.inf)
            low = -negated
            counts = self._histograms(low, high) if self._counts_values else None
            self._state.update(low, high, counts if counts is None or add is None else add(counts))
            self._qparams, self._clipped, self._is_ranged_known = {}, None, False
        self._looked |= self._batch.keys()
        self._batch, self._counts = {}, {}

    def _histograms(self, low: Tensor, high: Tensor) -> Tensor:
        """This batch's histograms, ``[N, B]``, over the spans of the ranges that all processes saw.

        What is not finite here has none, whatever the others saw.
        """
        zero = torch.zeros((), dtype=torch.long, device=low.device)
        counts, exponents = [], []
        for place, key in enumerate(self._places):
            held, exponent = self._counts.get(key, (zero.expand(NUM_BINS), zero))
            is_finite = torch.stack(self._batch[key]).isfinite().all() if key in self._batch else zero
            is_finite = is_finite & low[place].isfinite().to(is_finite.device)
            counts.append((held * is_finite).to(low.device))
            exponents.append(exponent.to(low.device))
        return widen_bins(torch.stack(counts), torch.stack(exponents), exponent_of(low, high))

    def discard(self) -> None:
        """Forget what this batch showed."""
        self._batch, self._counts, self._apart = {}, {}, {}

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
        self._looked = set(state["keys"])
        self._qparams, self._clipped, self._ranged, self._is_ranged_known = {}, None, set(), False
        self.discard()


def _mark_of(low: Tensor, high: Tensor) -> Tensor:
    """Mark a range: 0 if it is finite, else whether it holds infinities or NaN."""
    is_nan, is_infinite = low.isnan() | high.isnan(), low.isinf() | high.isinf()
    return torch.where(is_nan, NAN, torch.where(is_infinite, INFINITE, 0.0))


def _check_signs(quantizer: Quantizer, ends: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Refuse activations of which nothing would be left but one value."""
    for key, (low, high) in ends.items():
        if low >= 0 or high <= 0:
            raise ValueError(
                f"{type(quantizer).__name__} keeps the sign alone, and {key} has but one: it lies in "
                f"[{float(low):.4g}, {float(high):.4g}]. Give its layer another activation_quantizer in layers, such "
                "as Affine, or let the ReLU go"
            )
