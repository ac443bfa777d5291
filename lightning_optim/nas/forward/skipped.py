"""Skipped forward: a block that the active depth leaves out hands its input on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.switchable import GatingForward
from lightning_optim.search.decision import Condition
from lightning_optim.surgery.pass_through import PassThrough


@final
class SkippedForward(GatingForward):
    """Skipped forward: runs a block where the active option is among those that have it.

    Args:
        owner: The block.
        decision: Name of the decision.
        has_block: Whether each option has the block; the last has.
        pass_through: What comes out of a skipped block.
    """

    def __init__(self, owner: nn.Module, decision: str, has_block: Sequence[bool], pass_through: PassThrough) -> None:
        super().__init__(owner)
        self._decision, self._has_block, self._pass_through = decision, tuple(has_block), pass_through
        self._option, self._runs_both = len(has_block) - 1, False
        self.is_removable = False

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._runs_both:
            return self._superposed(self.__wrapped__(*args, **kwargs), self._pass_through(*args, **kwargs))
        return self._pass_through(*args, **kwargs) if self.skips else self.__wrapped__(*args, **kwargs)

    @property
    def skips(self) -> bool:
        """Whether the active architecture does without the block."""
        return self.is_skipped_with(self._option)

    @property
    def num_options(self) -> int:
        """Number of options of the decision."""
        return len(self._has_block)

    def is_skipped_with(self, option: int) -> bool:
        """Whether an option does without the block."""
        return not self._has_block[option]

    @property
    @override
    def follows(self) -> Set[str]:
        return {self._decision}

    @property
    @override
    def runs_as_built(self) -> bool:
        return not self.skips

    @override
    def gates(self) -> list[tuple[Set[nn.Module], Condition]]:
        options = tuple(option for option, has_block in enumerate(self._has_block) if has_block)
        return [(set(self.owner.modules()), Condition(decision=self._decision, options=options))]

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._option, self._runs_both = architecture.get(self._decision, self._option), False

    @override
    def forget(self, decisions: Set[str]) -> None:
        assert self._decision not in decisions, "it has one decision and is detached with it"

    @override
    def superpose(self) -> None:
        self._runs_both = True

    @override
    def extracted(self) -> nn.Module | None:
        if not self.skips:
            return self.owner
        return None if self.is_removable else self._pass_through.train(self.owner.training)

    def _superposed(self, computed: Any, passed: Any) -> Any:
        if not self._pass_through.is_tuple:
            return computed + passed
        place = self._pass_through.returned.index(0)
        return (*computed[:place], computed[place] + passed[place], *computed[place + 1 :])
