"""Notices: what a simulation warns of, each thing once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import final

from torch import Tensor

from lightning_optim.quantization.functional import value_range
from lightning_optim.quantization.simulation.integer_form import NO_PRODUCT, NO_TRANSPOSED
from lightning_optim.quantization.simulation.missing_ranges import notice_of
from lightning_optim.quantization.simulation.plan import Operator, Plan
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


_NAMED = 5
_FLOAT_LAYERS = re.compile(r"lstm|gru|rnn_(tanh|relu)|bilinear|conv_transpose\dd")


def float_layers(before: Plan, plan: Plan) -> dict[str, str]:
    """What to say of layers that a plan did not know before, and whose weights have no integer form.

    Args:
        before: The plan as it was.
        plan: The plan as it has grown.

    Returns:
        What it is about -> the message; nothing of layers that were left out of the targets.
    """
    new = [each for key, each in plan.operators.items() if key not in before.operators and _keeps_float_weights(each)]
    names = [*dict.fromkeys(f"{each.path} ({each.name})" for each in new)]
    if not names:
        return {}
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    text = (
        f"no integer kernel computes {', '.join(names[:_NAMED])}{more}: weights and activations stay in floating point "
        "there, in training and in the file, and describe() and the export count them so; leave them out in "
        "targets.exclude if that is meant"
    )
    return {", ".join(names): text}


def _keeps_float_weights(operator: Operator) -> bool:
    return operator.note in (NO_PRODUCT, NO_TRANSPOSED) and _FLOAT_LAYERS.match(operator.name) is not None
