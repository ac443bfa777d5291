"""Resized forward: a network runs on its input at the active resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.switchable import SingleDecisionForward
from lightning_optim.surgery.resized_input import ResizedInput, resized

Size = tuple[int, ...]


@final
class ResizedForward(SingleDecisionForward):
    """Resized forward: resizes the images that go into the owner.

    Args:
        owner: The network.
        decision: Name of the decision.
        sizes: The size by option; after them, one option leaves the input as it is.
    """

    def __init__(self, owner: nn.Module, decision: str, sizes: Sequence[Size]) -> None:
        super().__init__(owner, decision, len(sizes))
        self._sizes = tuple(sizes)

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.runs_as_built:
            args, kwargs = resized(args, kwargs, self._sizes[self._option])
        return self.__wrapped__(*args, **kwargs)

    @property
    @override
    def runs_as_built(self) -> bool:
        return self._option == len(self._sizes)

    @override
    def superpose(self) -> None:
        self._option = len(self._sizes)

    @override
    def extracted(self) -> nn.Module:
        if not self.runs_as_built:
            self.owner.register_forward_pre_hook(ResizedInput(self._sizes[self._option]), with_kwargs=True)
        return self.owner
