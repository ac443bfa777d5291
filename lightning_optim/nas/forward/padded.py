"""Padded forward: a padding module pads as much as the kernel behind it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.switchable import SingleDecisionForward


@final
class PaddedForward(SingleDecisionForward):
    """Padded forward: runs a padding module with the padding of the active option.

    Args:
        owner: A module of torch's that reads ``self.padding``.
        decision: Name of the decision.
        paddings: The padding by option; the last is the owner's own.
    """

    def __init__(self, owner: nn.Module, decision: str, paddings: Sequence[tuple[int, ...]]) -> None:
        super().__init__(owner, decision, len(paddings) - 1)
        self._paddings = tuple(paddings)

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = vars(self.owner)
        whole = own["padding"]
        own["padding"] = self._paddings[self._option]
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            own["padding"] = whole

    @property
    @override
    def runs_as_built(self) -> bool:
        return self._option == len(self._paddings) - 1

    @override
    def superpose(self) -> None:
        self._option = len(self._paddings) - 1

    @override
    def extracted(self) -> nn.Module:
        vars(self.owner)["padding"] = self._paddings[self._option]
        return self.owner
