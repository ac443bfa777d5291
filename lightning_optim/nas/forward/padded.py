"""Padded forward: a padding module pads as much as the kernel behind it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.switchable import SwitchableForward


@final
class PaddedForward(SwitchableForward):
    """Padded forward: runs a padding module with the padding of the active option.

    Args:
        owner: A module of torch's that reads ``self.padding``.
        decision: Name of the decision.
        paddings: The padding by option; the last is the owner's own.
    """

    def __init__(self, owner: nn.Module, decision: str, paddings: Sequence[tuple[int, ...]]) -> None:
        super().__init__(owner)
        self._decision, self._paddings, self._option = decision, tuple(paddings), len(paddings) - 1

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
    def follows(self) -> Set[str]:
        return {self._decision}

    @property
    @override
    def runs_as_built(self) -> bool:
        return self._option == len(self._paddings) - 1

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._option = architecture.get(self._decision, self._option)

    @override
    def forget(self, decisions: Set[str]) -> None:
        assert self._decision not in decisions, "it has one decision and is detached with it"

    @override
    def superpose(self) -> None:
        self._option = len(self._paddings) - 1

    @override
    def extracted(self) -> nn.Module:
        vars(self.owner)["padding"] = self._paddings[self._option]
        return self.owner
