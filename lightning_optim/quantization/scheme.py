"""What integers a quantizer uses, and how much of a tensor shares one scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, final

Granularity = Literal["tensor", "channel", "group", "token"]
_GRANULARITIES = ("tensor", "channel", "group", "token")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A set of integers and a granularity.

    Args:
        bits: How many values there are, as a width: 1 to 8; 32 for ``"float"``.
        signed: Whether integers are signed; ``"int"`` or ``"uint"``. ``"float"``: values are not rounded at all.
        symmetric: Whether 0 is always represented by the integer 0.
        granularity: What shares one scale. ``"tensor"``: all; ``"channel"``: each entry of dimension 0; ``"group"``:
            some input channels of an output; ``"token"``: each row of an activation's last dimension, found anew at
            every pass.
        limit: Largest integer, where values lie further apart than 1, as powers of two do; 0 follows from the width.
        narrow_range: Whether a signed symmetric scheme leaves the most negative integer out, so that a value and its
            negative are equally exact.
        has_level_per_sign: Whether each sign has a level of its own, which the quantizer of one weight holds beside the
            scale.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> weights = Scheme(bits=8, signed="int", symmetric=True, granularity="channel")
        >>> weights.qmin, weights.qmax
        (-127, 127)
    """

    bits: int
    signed: Literal["int", "uint", "float"]
    symmetric: bool
    granularity: Granularity
    limit: int = 0
    narrow_range: bool = True
    has_level_per_sign: bool = False

    def __post_init__(self) -> None:
        if self.signed not in ("int", "uint", "float"):
            raise ValueError(f"signed must be 'int', 'uint' or 'float', got {self.signed!r}")
        is_width = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        if not is_width or not (self.bits == 32 if self.is_exact else 1 <= self.bits <= 8):
            raise ValueError(f"bits must be a whole number from 1 to 8, got {self.bits!r}")
        if self.granularity not in _GRANULARITIES:
            raise ValueError(f"granularity must be one of {', '.join(_GRANULARITIES)}, got {self.granularity!r}")
        if not self.narrow_range and (self.signed != "int" or not self.symmetric or self.limit or self.bits == 1):
            raise ValueError("narrow_range=False is for signed integers around 0 of 2 bits and more")

    @property
    def is_exact(self) -> bool:
        """Whether values stay as they are, in floating point."""
        return self.signed == "float"

    @property
    def is_sign_symmetric(self) -> bool:
        """Whether both signs are treated alike, so that a batch norm may turn a weight before it is rounded."""
        return self.qmin == -self.qmax and not self.has_level_per_sign

    @property
    def is_binary(self) -> bool:
        """Whether a value becomes one of two of opposite signs, so that nothing is left of values of a single sign."""
        return self.bits == 1 and self.signed == "int" and self.symmetric

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        if self.signed == "uint":
            return 0
        return -self.qmax if self.symmetric and self.narrow_range else -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest integer."""
        if self.limit:
            return self.limit
        if self.signed == "uint":
            return (1 << self.bits) - 1
        return max((1 << (self.bits - 1)) - 1, int(self.symmetric))  # of one bit and around 0: -1 and 1


@lru_cache(maxsize=None, typed=True)  # asked for at each operator of each forward pass; True is not 1
def find_scheme(**settings: Any) -> Scheme:
    """Return the scheme of some settings, made once.

    Example:
        >>> find_scheme(bits=8, signed="uint", symmetric=False, granularity="tensor").qmax
        255
    """
    return Scheme(**settings)
