"""Bits forward: a layer rounds its weight and its input to the active widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.switchable import SwitchableForward
from lightning_optim.surgery.rounded import BitWidths, Rounding


@final
class BitsForward(SwitchableForward):
    """Bits forward: runs a layer at the bit widths of the active option.

    Args:
        owner: The layer.
        decision: Name of the decision.
        options: The widths by option; ``None`` is floating point.
        default: Index of the option that holds until another is activated.
    """

    def __init__(self, owner: nn.Module, decision: str, options: Sequence[BitWidths | None], default: int) -> None:
        super().__init__(owner)
        self._decision, self._options, self._option = decision, tuple(options), default

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        widths = self._options[self._option]
        if widths is None:
            return self.__wrapped__(*args, **kwargs)
        rounding = Rounding(widths)
        args, kwargs = rounding.begin(self.owner, args, kwargs)
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            rounding.end(self.owner)

    @property
    @override
    def follows(self) -> Set[str]:
        return {self._decision}

    @property
    @override
    def runs_as_built(self) -> bool:
        return self._options[self._option] is None

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._option = architecture.get(self._decision, self._option)

    @override
    def forget(self, decisions: Set[str]) -> None:
        assert self._decision not in decisions, "it has one decision and is detached with it"

    @override
    def superpose(self) -> None:
        """Follow nothing: no option ties channels."""

    @override
    def extracted(self) -> nn.Module:
        widths = self._options[self._option]
        if widths is not None:
            Rounding(widths).attach(self.owner)
        return self.owner
