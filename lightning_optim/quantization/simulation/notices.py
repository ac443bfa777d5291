"""Notices: what a simulation warns of, each thing once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import final

from torch import Tensor

from lightning_optim.quantization.functional import value_range
from lightning_optim.quantization.simulation.missing_ranges import notice_of
from lightning_optim.quantization.simulation.sentinels import sentinel_bound
from lightning_optim.surgery.torch_private import FakeTensor


@final
class Notices:
    """Notices of a simulation.

    Attributes:
        missing: Activations that have no range, which passes that take note of nothing came across.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._clipped: dict[str, str] = {}
        self._told, self._looked = set[str](), set[str]()

    def miss(self, key: str) -> None:
        """Take note of an activation without a range."""
        if key not in self.missing:
            self.missing.append(key)

    def look(self, sums: Set[str], key: str, tensor: Tensor) -> None:
        """Look for a mask in a sum whose range was learned without one; an accelerator is waited for once a sum.

        Args:
            sums: The activations that sums put out or read.
            key: Names an activation.
            tensor: What it holds.
        """
        if (
            key not in sums
            or isinstance(tensor, FakeTensor)
            or not tensor.numel()
            or (tensor.is_cuda and key in self._looked)
        ):
            return
        self._looked.add(key)
        if sentinel_bound(tensor, ends=value_range(tensor)) is not None:
            self._clipped[f"{key} clipped"] = (
                f"{key} holds a mask's huge numbers, which no batch has shown before: its range clips them, so that "
                "what was to be masked counts. Let calibrate() see such a batch; what was learned stays"
            )

    def tell(self, said: Mapping[str, str]) -> None:
        """Warn of what was not told yet: what it is about -> the message."""
        for subject, text in said.items():
            if subject not in self._told:
                warnings.warn(text, stacklevel=4)
        self._told |= said.keys()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Warn at the end of what was noticed inside for the first time."""
        count = len(self.missing)
        yield
        if self.missing[count:]:
            warnings.warn(notice_of(self.missing[count:]), stacklevel=4)
        if self._clipped:
            self.tell(self._clipped)
            self._clipped = {}
