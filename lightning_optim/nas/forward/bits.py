"""Bits forward: a layer rounds its weight and its input to the active widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.switchable import SingleDecisionForward
from lightning_optim.surgery.rounded import BitWidths, Rounding


@final
class BitsForward(SingleDecisionForward):
    """Bits forward: runs a layer at the bit widths of the active option.

    Args:
        owner: The layer.
        decision: Name of the decision.
        options: The widths by option; ``None`` is floating point.
        default: Index of the option that holds until another is activated.
    """

    def __init__(self, owner: nn.Module, decision: str, options: Sequence[BitWidths | None], default: int) -> None:
        super().__init__(owner, decision, default)
        self._options = tuple(options)

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
    def runs_as_built(self) -> bool:
        return self._options[self._option] is None

    @override
    def superpose(self) -> None:
        """Follow nothing: no option ties channels."""

    @override
    def extracted(self) -> nn.Module:
        widths = self._options[self._option]
        if widths is not None:
            Rounding(widths).attach(self.owner)
        return self.owner
