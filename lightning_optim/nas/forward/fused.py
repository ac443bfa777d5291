"""Fused forward: modules of torch's that compute with the tensors of modules inside them, without a call of these."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.nas.forward.sliced import SlicedForward
from lightning_optim.nas.forward.switchable import SwitchableForward, switchable_forwards
from lightning_optim.surgery.attention import (
    PrunedMultiheadAttention,
    attend_with_cut_heads,
    is_whole,
    leave_fast_path,
    off_fast_path,
    plain_attentions,
)

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


@final
class FusedForward(SwitchableForward):
    """Fused forward: whatever follows a decision inside the owner follows it here too.

    ``nn.MultiheadAttention`` reads the weight of its output projection, and in evaluation an encoder layer reads the
    weights of all its modules; their own forwards are not called. So all slices inside are taken before the owner runs.
    An attention whose slices torch's own code cannot use runs as its extracted successor does; where something
    else than a slice is inside, the encoder evaluates as it trains.

    Args:
        owner: Such a module.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__(owner)
        self._found: _Found | None = None  # until the path changes

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for forward in self._slices if self._found is None else self._found.slices:
                if not forward.is_open:
                    stack.enter_context(forward.sliced())
            found = self._found = self._look() if self._found is None else self._found
            if found.leaves_fast_path:
                stack.enter_context(off_fast_path(self.owner))
            if found.has_cut_heads:
                return attend_with_cut_heads(self.owner, *args, **kwargs)  # type: ignore[arg-type]  # an attention
            return self.__wrapped__(*args, **kwargs)

    @property
    @override
    def follows(self) -> Set[str]:
        return frozenset()

    @property
    @override
    def runs_as_built(self) -> bool:
        return True

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._found = None

    @override
    def forget(self, decisions: Set[str]) -> None:
        self._found = None

    @override
    def superpose(self) -> None:
        self._found = None

    @override
    def extracted(self) -> nn.Module:
        if isinstance(self.owner, nn.TransformerEncoder | nn.TransformerEncoderLayer) and self._leaves_fast_path():
            leave_fast_path(self.owner)
        return self.owner

    @property
    def _inside(self) -> list[SwitchableForward]:
        return [forward for forward in switchable_forwards(self.owner) if not isinstance(forward, FusedForward)]

    @property
    def _slices(self) -> list[SlicedForward]:
        return [forward for forward in self._inside if isinstance(forward, SlicedForward)]

    def _look(self) -> _Found:
        # All slices are taken by now, so that weights have the shapes of the path.
        others = [forward for forward in self._inside if not isinstance(forward, SlicedForward)]
        owner, runs_itself = self.owner, all(each.runs_as_built for each in others if each.owner is self.owner)
        return _Found(
            slices=[forward for forward in self._slices if not forward.runs_as_built],
            leaves_fast_path=self._leaves_fast_path(),
            has_cut_heads=type(owner) is nn.MultiheadAttention and not is_whole(owner) and runs_itself,
        )

    def _leaves_fast_path(self) -> bool:
        others = [forward for forward in self._inside if not isinstance(forward, SlicedForward)]
        is_cut = any(isinstance(part, PrunedMultiheadAttention) for part in self.owner.modules())
        is_cut |= not all(map(is_whole, plain_attentions(self.owner)))
        return is_cut or not all(forward.runs_as_built for forward in others if forward.owner is not self.owner)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What the active path has inside the owner.

    Args:
        slices: Those that it takes.
        leaves_fast_path: Whether an encoder evaluates as it trains.
        has_cut_heads: Whether the owner is an attention whose weights its own code cannot use.
    """

    slices: list[SlicedForward]
    leaves_fast_path: bool
    has_cut_heads: bool


def attach_fused(root: nn.Module) -> None:
    """Attach a fused forward to each module that needs one: there is something switchable inside."""
    for module in root.modules():
        own = [forward for forward in switchable_forwards(module) if forward.owner is module]
        is_done = any(isinstance(forward, FusedForward) for forward in own)
        for forward in own:
            if isinstance(forward, FusedForward):
                forward.superpose()  # there may be more inside by now
        inside = [forward for forward in switchable_forwards(module) if not isinstance(forward, FusedForward)]
        if isinstance(module, _FUSED) and inside and not is_done:
            FusedForward(module).attach()
