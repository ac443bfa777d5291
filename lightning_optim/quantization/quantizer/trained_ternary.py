"""TTQ: ternary weights with a trained scale for each sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import SMALLEST_SCALE, per_channel
from lightning_optim.quantization.quantizer.base import FixedScaleQuantizer, Quantizer
from lightning_optim.quantization.quantizer.learner import Start, Values, WeightLearner
from lightning_optim.quantization.quantizer.level_quantizer import check_granularity
from lightning_optim.quantization.scheme import Granularity, Scheme

_LARGEST = 64  # two neighbours of one sign times 255 stay within 16 bits, where processors without VNNI add them


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTernary(WeightLearner):
    """Weights 0, a trained W_p or a trained -W_n (trained ternary quantization; Zhu et al., 2017; arXiv:1612.01064).

    What is above ``threshold`` times the largest magnitude becomes W_p, what is below its negative becomes -W_n, the
    rest 0 (eq. 6 and 9). Each scale begins at the mean magnitude of what it stands for. W_p gets the sum of its
    weights' gradients, W_n that of its own with the other sign (eq. 7); a weight gets its own gradient times W_p or
    W_n, in units of the largest magnitude, and times 1 where it is 0 (eq. 8).

    One scale carries both: the larger of W_p and W_n is 64 integer steps, the other is rounded to whole ones. A file
    stores these integers in 8 bits. A batch norm that turns a channel's sign turns the roles of its two scales.

    Args:
        threshold: Fraction of the largest magnitude up to which a weight becomes 0, in ``[0, 1)``.
        granularity: What shares the two scales: ``"tensor"``, as in the paper, or ``"channel"``.

    Example:
        >>> starts = TrainedTernary().start(torch.tensor([[1.0, 2.0, -4.0, 0.1]]))
        >>> starts["positive"].value, starts["negative"].value
        (tensor(1.5000), tensor(4.))
    """

    threshold: float = 0.05
    granularity: Granularity = "tensor"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        if not 0.0 <= self.threshold < 1.0:
            raise ValueError(f"threshold must be in [0, 1), got {self.threshold}")

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(
            bits=2,
            signed="int",
            symmetric=True,
            granularity=self.granularity,
            limit=_LARGEST,
            has_level_per_sign=True,
        )

    @override
    def start(self, weight: Tensor) -> dict[str, Start]:
        rows = self._rows(weight.detach().float())
        is_kept = rows.abs() > self.threshold * rows.abs().amax(1, keepdim=True)
        means = [_mean_where(rows.abs(), is_kept & (rows * sign > 0), is_kept) for sign in (1, -1)]
        positive, negative = (mean if self.granularity == "channel" else mean[0] for mean in means)
        return {"positive": Start(value=positive), "negative": Start(value=negative)}

    @override
    def bind(self, values: Values) -> Quantizer:
        return _TernaryWeight(rule=self, positive=values["positive"], negative=values["negative"])

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return self._first(weight).weight_scale(weight)

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = (torch.maximum(-low, high) / _LARGEST).clamp(min=SMALLEST_SCALE)
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return self._first(x).integers(x, scale, zero_point)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return self._first(x).fake(x, scale, zero_point)

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest magnitude among what shares the scales, so that it broadcasts against ``x``."""
        return per_channel(self._rows(x.abs()).amax(1), x)

    def _first(self, weight: Tensor) -> Quantizer:
        return self.bind({name: start.value for name, start in self.start(weight).items()})

    def _rows(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.granularity == "channel" else x.reshape(1, -1)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _TernaryWeight(FixedScaleQuantizer):
    """The rule with the scales of one weight, ``[O]`` each or scalars."""

    rule: TrainedTernary
    positive: Tensor
    negative: Tensor

    @property
    @override
    def scheme(self) -> Scheme:
        return self.rule.scheme

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return torch.maximum(self.positive, self.negative).detach() / _LARGEST

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.rule.qparams(low, high)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        up, down = self._heights(x)
        above, below, _ = self._sides(x, scale)
        return above * up.round() - below * down.round()

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        out: Tensor = _Ternarize.apply(x, scale, *self._heights(x), *self._sides(x, scale))  # type: ignore[no-untyped-call]  # torch's own
        return out

    def _heights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many steps from 0 the two levels lie, before rounding."""
        step = self.weight_scale(like)
        return per_channel(self.positive / step, like), per_channel(self.negative / step, like)

    def _sides(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where a weight is above and where below the threshold, and the largest magnitude, in steps."""
        steps = x.detach().float() / scale.detach()
        largest = self.rule.largest(steps)
        threshold = self.rule.threshold * largest
        return steps > threshold, steps < -threshold, largest


class _Ternarize(torch.autograd.Function):
    """Gives 0 or one of two levels in one node, with the paper's gradients for values and levels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, up: Tensor, down: Tensor, above: Tensor, below: Tensor, largest: Tensor
    ) -> Tensor:
        ctx.save_for_backward(scale, up, down, above, below, largest)
        return (above * up.round() - below * down.round()).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (scale, up, down, above, below, largest) = gradients, ctx.saved_tensors
        units = largest.clamp(min=SMALLEST_SCALE)
        factor = torch.where(above, up / units, torch.where(below, down / units, torch.ones_like(units)))
        steps = gradient.float() * scale
        of_up, of_down = (steps * above).sum_to_size(up.shape), -(steps * below).sum_to_size(down.shape)
        return (gradient * factor).to(gradient.dtype), None, of_up, of_down, None, None, None


def _mean_where(magnitudes: Tensor, is_own: Tensor, is_kept: Tensor) -> Tensor:
    """Mean of each row's own entries; of all kept ones where it has none, so that training has somewhere to begin."""
    chosen = torch.where(is_own.any(1, keepdim=True), is_own, is_kept)
    return ((magnitudes * chosen).sum(1) / chosen.sum(1).clamp(min=1)).clamp(min=SMALLEST_SCALE)
