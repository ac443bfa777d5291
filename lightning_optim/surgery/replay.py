"""Replay: code runs twice, and a network that it calls runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import TapError
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.generator_state import GeneratorState
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import call_wrapped, checkpoints_followed, in_place_version


@final
@dataclass(frozen=True, slots=True)
class _Played:
    """One call: what it put out, what random numbers follow it, and what it was given, if that is compared."""

    output: Any
    versions: tuple[int, ...]
    after: GeneratorState
    given: tuple[Tensor, ...] | None


@final
class NetworkReplay:
    """Replay of the calls of one network: in a second run of the same code they give what they gave in the first.

    In the second run neither the network nor any hook on it runs. Both runs draw the same random numbers outside the
    network, and after them as many are drawn as the first run has drawn.

    Args:
        network: The network.
        is_root: Whether it is the LightningModule, whose ``forward`` a step may call by name.
        device: Where it draws random numbers.

    Example:
        >>> layer = nn.Dropout()
        >>> replay = NetworkReplay(layer, is_root=False, device=torch.device("cpu"))
        >>> with replay.first():
        ...     first = layer(torch.ones(8))
        >>> with replay.second():
        ...     layer(torch.ones(8)) is first
        True
    """

    def __init__(self, network: nn.Module, *, is_root: bool, device: torch.device) -> None:
        self._network, self._is_root, self._device = network, is_root, device
        self._played: list[_Played] = []
        self._depth = self._next = 0
        self._compares = self._differs = self._is_reentrant = False
        self._began = self._ended = GeneratorState.of(device)
        self._ends: BaseException | None = None

    @property
    def outputs(self) -> list[Any]:
        """What the network put out in the first run, call by call."""
        return [played.output for played in self._played]

    @property
    def inputs_differ(self) -> bool:
        """Whether the second run gave the network something else than the first, where that is compared."""
        return self._differs

    def check_called(self) -> None:
        """Refuse a first run that did not call the network.

        Raises:
            TapError: Saying how to call it.
        """
        if not self._played:
            raise TapError(
                "training_step did not call the network that was found: it must call it as a module, self(...) or "
                "self.net(...), and not parts of it one by one; set network to the submodule that it calls"
            )

    @contextmanager
    def first(self, *, compares: bool = False, ends: BaseException | None = None) -> Iterator[None]:
        """Record the calls of the first run.

        Args:
            compares: Whether the second run notes that the network is given something else.
            ends: Raised after the first call, so that the rest is left to the second run.

        Raises:
            TapError: If a call records no gradient that could be used twice.
        """
        self._began, self._compares, self._ends = GeneratorState.of(self._device), compares, ends
        with self._wrapped(self._record), checkpoints_followed(self._note_checkpoint):
            yield
        self._ended = GeneratorState.of(self._device)

    @contextmanager
    def second(self) -> Iterator[None]:
        """Give back in the second run what the first one has recorded.

        Where the first run was ended early, the network runs again from its second call on.

        Raises:
            TapError: If the second run calls the network more often than the first, which was not ended early, or the
                first has changed an output in place.
        """
        self._began.restore()
        try:
            with self._wrapped(self._play):
                yield
        finally:
            if self._ends is None:
                self._ended.restore()

    @contextmanager
    def _wrapped(self, wrapper: Callable[..., Any]) -> Iterator[None]:
        patches = Patches()
        with ExitStack() as stack:
            stack.enter_context(call_wrapped(self._network, wrapper))
            if self._is_root:
                stack.callback(patches.undo)
                patches.wrap(self._network, "forward", wrapper)
            yield

    def _record(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._depth:
            return original(*args, **kwargs)
        given = tuple(each.detach().clone() for each in tensors_of((args, kwargs))) if self._compares else None
        self._depth += 1
        try:
            output = original(*args, **kwargs)
        finally:
            self._depth -= 1
        if self._is_reentrant and not torch.is_grad_enabled():
            raise TapError(
                "the network runs inside a reentrant checkpoint, where its output has no gradient to be used twice: "
                "call torch.utils.checkpoint.checkpoint with use_reentrant=False"
            )
        self._played.append(_Played(output, _versions(output), GeneratorState.of(self._device), given))
        if self._ends is not None:
            raise self._ends
        return output

    def _play(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._next == len(self._played) and self._ends is not None:
            return original(*args, **kwargs)
        if self._next == len(self._played):
            raise TapError(
                f"training_step called the network {self._next} times with the first labels, and more often with the "
                "second: its output cannot be used for both"
            )
        played = self._played[self._next]
        self._next += 1
        if _versions(played.output) != played.versions:
            raise TapError(
                "training_step changes in place what the network has put out, and needs it once more for the second "
                "labels: write logits = logits / 2, not logits /= 2"
            )
        if played.given is not None:
            self._differs |= not _are_equal(played.given, tuple(tensors_of((args, kwargs))))
        played.after.restore()
        return played.output

    def _note_checkpoint(
        self, function: Callable[..., Any], args: Any, is_reentrant: bool
    ) -> Callable[..., Any]:  # torch's
        self._is_reentrant |= is_reentrant and not self._depth
        return function


def _versions(output: Any) -> tuple[int, ...]:
    return tuple(in_place_version(tensor) for tensor in tensors_of(output))


def _are_equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return len(first) == len(second) and all(
        one.shape == other.shape and torch.equal(one, other) for one, other in zip(first, second, strict=True)
    )
