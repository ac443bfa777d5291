"""Layer bits: how many bits a layer's weight and input have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.bits import BitsForward
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.layer_kinds import LAYERS
from lightning_optim.surgery.rounded import BitWidths
from lightning_optim.surgery.select import Targets

_FEWEST, _MOST = 2, 16


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBits(SearchDimension):
    """Layer bits: bit widths of a layer's weight and input (Wang et al., 2019; arXiv:1811.08886, mixed precision).

    A path rounds as a quantized network would: weights symmetrically with a step for each output channel,
    ``max |w| / (2 ** (b - 1) - 1)``; the layer's input with one step and an integer for 0, between the extremes of
    each batch. Gradients pass straight through. Search bits together with operations and widths, since the best
    floating-point network is often not the best one at few bits. ``WeightBytes`` counts the bits chosen.

    The extracted network rounds in the same way, by hooks. ``release_bits`` takes them off and returns the widths by
    layer, for quantization-aware training of the float network; see its example.

    Args:
        targets: Convolutions and linear layers; each is a decision.
        bits: Pairs of the bits of weights and of activations to choose from, 2 to 16 each; ``None`` for activations
            leaves them in floating point.
        or_float: Whether a layer may stay in floating point too, which then is the user's own network. Otherwise
            the last pair is what holds without a search.

    Raises:
        ValueError: If there is no pair, one stands twice, or a width is out of range.

    Example:
        >>> [str(widths) for widths in LayerBits(targets=Targets(), bits=[[4, 8], [8, None]]).widths]
        ['w4a8', 'w8']
    """

    adds_modules: ClassVar[bool] = False

    targets: Targets
    bits: Sequence[Sequence[int | None]] = ((4, 8), (8, 8))
    or_float: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(tuple(pair) for pair in self.bits))
        if not self.bits or any(len(pair) != 2 or not _is_valid(*pair) for pair in self.bits):
            raise ValueError(
                f"bits must be pairs [weight, activation] of {_FEWEST} to {_MOST} each, or null for an activation, "
                f"got {[list(pair) for pair in self.bits]}"
            )
        if len(set(self.bits)) < len(self.bits):
            raise ValueError(f"each pair of bits must stand once, got {[list(pair) for pair in self.bits]}")

    @property
    def widths(self) -> tuple[BitWidths, ...]:
        """The pairs to choose from."""
        return tuple(BitWidths(weight=weight or 0, activation=activation) for weight, activation in self.bits)

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, LAYERS)
        computed = [name for name, layer in chosen.items() if "weight" not in vars(layer)["_parameters"]]
        if computed:
            raise TargetError(
                f"the weight of {computed[0]!r} is computed by a parametrization and cannot be rounded here; add it "
                "to targets.exclude, or remove the parametrization"
            )
        site.calls(list(chosen))  # a weight that others read would not be rounded
        options = (*self.widths, *([None] if self.or_float else []))
        texts = tuple("float" if widths is None else str(widths) for widths in options)
        for name, layer in chosen.items():
            BitsForward(layer, f"{name}:bits", options, len(options) - 1).attach()
        return [Decision(name=f"{name}:bits", options=texts, default=len(options) - 1) for name in chosen]


def _is_valid(weight: int | None, activation: int | None) -> bool:
    return weight is not None and all(_FEWEST <= bits <= _MOST for bits in (weight, activation or weight))
