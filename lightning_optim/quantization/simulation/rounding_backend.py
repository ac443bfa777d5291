"""Simulation backend: computes in floating point what the integers would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, final

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from typing_extensions import override

from lightning_optim.quantization.fold import fold_batch_norm, uses_running_statistics
from lightning_optim.quantization.functional import SMALLEST_SCALE, bias_floor, per_channel, round_bias
from lightning_optim.quantization.quantizer.base import FixedScaleQuantizer, Quantizer, dynamic_qparams
from lightning_optim.quantization.quantizer.learner import ActivationLearner, Start, WeightLearner
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulation.backend import Backend
from lightning_optim.surgery.torch_private import BatchNorm


def weight_scale(weight: Tensor, quantizer: Quantizer, floor: Tensor | None, norm: BatchNorm | None = None) -> Tensor:
    """Return the scale of a weight: ``[O]``, a scalar, or ``[O, G]`` for groups.

    Args:
        weight: The weight, with its batch norm folded in.
        quantizer: Its quantizer.
        floor: Smallest scale that each output channel may have, ``[O]``; groups have none.
        norm: The batch norm that was folded in.
    """
    scale = quantizer.weight_scale(weight)
    if norm is not None and isinstance(quantizer, FixedScaleQuantizer):
        factor = norm_factor(norm, weight).abs().clamp(min=SMALLEST_SCALE)
        scale = scale * (factor if scale.dim() < 2 else factor.unsqueeze(1))
    if floor is None or scale.dim() == 2:
        return scale
    return torch.maximum(scale, (floor if scale.dim() else floor.max()).to(scale.dtype))


def norm_factor(norm: BatchNorm, weight: Tensor) -> Tensor:
    """Return what a folded batch norm multiplies every output channel by, ``[O]``, without gradient."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    return (factor if norm.weight is None else factor * norm.weight.detach()).to(weight.dtype)


def _covers(qparams: tuple[Tensor, Tensor], scheme: Scheme, ends: tuple[Tensor, Tensor]) -> bool:
    """Whether values between two ends are all rounded to integers of the scheme, one step from its ends or less."""
    scale, zero_point = map(float, qparams)
    low, high = map(float, ends)
    return (scheme.qmin - zero_point) * scale <= low and high <= (scheme.qmax - zero_point) * scale


class KnownRanges(Protocol):
    """Ranges of activations, as the simulation asks for them."""

    def measure(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what ``observe`` would return, and take in nothing."""

    def observe(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Take in what an activation holds, and return its range if that is known at once."""

    def qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point of an activation, or ``None`` if it has no range yet."""


class FirstValues(Protocol):
    """First values of quantizers that learn some, as the simulation shows them."""

    def lacks(self, key: str) -> bool:
        """Whether there are none yet under a key."""

    def is_untrained(self, key: str) -> bool:
        """Whether there are none under a key that are trained."""

    def find(self, key: str, values: Mapping[str, Start]) -> None:
        """Take note of first values, by name."""


@final
class _Measured:
    """Ranges of a pass that runs once more: they are what they were, and take in nothing."""

    def __init__(self, ranges: KnownRanges) -> None:
        self.measure, self.qparams = ranges.measure, ranges.qparams

    def observe(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what the first pass was told."""
        return self.measure(key, tensor)


@final
class _Found:
    """First values in a pass that runs once more: they are found already, and not trained yet."""

    def __init__(self, found: FirstValues) -> None:
        self.lacks = found.is_untrained
        self.is_untrained = found.is_untrained

    def find(self, key: str, values: Mapping[str, Start]) -> None:
        """Take note of nothing."""


@final
class SimulationBackend(Backend):
    """Simulation backend: rounds weights and activations to the values of their integers.

    While a batch norm runs on the statistics of its batch, it can't be folded. A scale of its own for every channel
    makes up for that: rounding ``weight`` or ``weight * gamma / sigma`` is then the same but for the factor. With one
    scale for the whole tensor, the factor is applied before and taken back after rounding.

    Args:
        ranges: Ranges of the activations.
        weight_quantizer_of: Key of a layer -> quantizer of its weight.
        activation_quantizer_of: Key of an activation -> its quantizer.
        observes: Whether activations widen the batch's ranges.
        folds_all: Whether every batch norm is folded, even one that would use its batch's statistics.
        learned: Takes note of the first values of quantizers that learn some.
        notice: Takes note of an activation that has no range, and stays as it is.
        look: Looks at every activation that has one.
    """

    def __init__(  # one keyword for each question
        self,
        ranges: KnownRanges,
        weight_quantizer_of: Callable[[str], Quantizer],
        activation_quantizer_of: Callable[[str], Quantizer],
        *,
        observes: bool,
        folds_all: bool,
        learned: FirstValues | None = None,
        notice: Callable[[str], object] | None = None,
        look: Callable[[str, Tensor], object] | None = None,
    ) -> None:
        self._ranges, self._weights, self._activations = ranges, weight_quantizer_of, activation_quantizer_of
        self._observes, self._folds_all, self._learned = observes, folds_all, learned
        self._notice, self._look = notice, look
        self._factors, self._is_first = dict[str, Tensor](), True
        self._first_qparams: dict[str, tuple[Tensor, Tensor] | None] = {}

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        ends = self._ranges.observe(key, tensor) if self._observes else None
        quantizer, qparams = self._activations(key), self._qparams(key, tensor.device)
        if qparams is None:
            self.pass_unknown(key)
            return tensor
        if self._look is not None:
            self._look(key, tensor)
        learned, name = self._learned, f"activation/{key}"
        if isinstance(quantizer, ActivationLearner) and learned is not None and learned.lacks(name):
            learned.find(name, quantizer.start(*qparams))
        dynamic = dynamic_qparams(quantizer, tensor)
        if dynamic is not None:
            return _fake(quantizer, tensor, *dynamic)
        # A processor knows at once that nothing is clipped; an accelerator would have to be waited for.
        is_known = tensor.device.type == "cpu" and not (
            isinstance(quantizer, ActivationLearner) or torch.compiler.is_compiling()
        )
        is_within = is_known and ends is not None and _covers(qparams, quantizer.scheme, ends)
        return _fake(quantizer, tensor, *qparams, is_within=is_within)

    @override
    def repeated(self) -> SimulationBackend:
        again = SimulationBackend(
            _Measured(self._ranges),
            self._weights,
            self._activations,
            observes=self._observes,
            folds_all=self._folds_all,
            learned=None if self._learned is None else _Found(self._learned),
        )
        again._factors, again._first_qparams, again._is_first = self._factors, self._first_qparams, False
        return again

    @override
    def pass_unknown(self, key: str) -> None:
        if self._notice is not None:
            self._notice(key)

    @override
    def folds(self, norm: BatchNorm) -> bool:
        return self._folds_all or uses_running_statistics(norm)

    @override
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        quantizer, input_scale = self._weight_quantizer(key, weight), self._input_scale(input_key, weight.device)
        if norm is not None and not self.folds(norm):
            return _round_unfolded(weight, quantizer, lambda: self._factor(key, weight, norm)), bias
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        floor = None if bias is None or input_scale is None else bias_floor(bias, input_scale)
        scale = weight_scale(weight, quantizer, floor, norm)
        if bias is not None and input_scale is not None and scale.dim() < 2:  # groups have no common accumulator
            bias = round_bias(bias, input_scale * scale)
        return _round(weight, quantizer, scale), bias

    def _factor(self, key: str, weight: Tensor, norm: BatchNorm) -> Tensor:
        """Return what a batch norm multiplies by; its statistics change when it runs, before a part runs once more."""
        if self._is_first or key not in self._factors:
            self._factors[key] = norm_factor(norm, weight)
        return self._factors[key]

    def _weight_quantizer(self, key: str, weight: Tensor) -> Quantizer:
        quantizer, learned, name = self._weights(key), self._learned, f"weight/{key}"
        if not isinstance(quantizer, WeightLearner) or learned is None or not learned.lacks(name):
            return quantizer
        values = quantizer.start(weight)  # of the weight itself: a batch norm that is folded in multiplies its scale
        learned.find(name, values)
        return quantizer.bind({name: start.value for name, start in values.items()})

    def _input_scale(self, key: str, device: torch.device) -> Tensor | None:
        scheme = self._activations(key).scheme
        if scheme.is_exact or scheme.granularity == "token":
            return None  # there is none, or each row has its own
        qparams = self._qparams(key, device)
        return None if qparams is None else qparams[0].detach()

    def _qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point; those of the first run, though ranges were merged since, unless learned."""
        if isinstance(self._activations(key), ActivationLearner):
            return self._ranges.qparams(key, device)  # with a graph of its own
        if self._is_first or key not in self._first_qparams:
            self._first_qparams[key] = self._ranges.qparams(key, device)
        return self._first_qparams[key]


def _round(weight: Tensor, quantizer: Quantizer, scale: Tensor) -> Tensor:
    return _fake(quantizer, weight, per_channel(scale, weight), None, is_within=True)


def _fake(
    quantizer: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False
) -> Tensor:
    """Round, as one function to whoever follows torch functions: its gradient is not that of its parts."""
    tensors = (x, scale) if zero_point is None else (x, scale, zero_point)
    if has_torch_function(tensors):
        x = x if is_within else x.clone()  # the backward needs it, and the graph may overwrite it later on
        rounded: Tensor = handle_torch_function(quantizer.fake, tensors, x, scale, zero_point, is_within=is_within)
        return rounded
    return quantizer.fake(x, scale, zero_point, is_within=is_within)


def _round_unfolded(weight: Tensor, quantizer: Quantizer, norm_factor: Callable[[], Tensor]) -> Tensor:
    if quantizer.scheme.granularity != "tensor" or isinstance(quantizer, FixedScaleQuantizer):
        if quantizer.scheme.is_sign_symmetric:
            return _round(weight, quantizer, weight_scale(weight, quantizer, None))
        # A rule that tells the signs apart sees them as they will be once the norm is folded in.
        sign = per_channel(torch.where(norm_factor() < 0, -1.0, 1.0), weight)
        turned = weight * sign
        return _round(turned, quantizer, weight_scale(turned, quantizer, None)) * sign
    factor = norm_factor()
    factor = per_channel(torch.where(factor == 0, torch.ones_like(factor), factor), weight)
    scaled = weight * factor
    return _round(scaled, quantizer, weight_scale(scaled, quantizer, None)) / factor
