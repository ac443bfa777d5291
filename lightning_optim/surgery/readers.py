"""Readers of a module's output: which other module takes it as input, seen in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from lightning_optim.surgery.tap import Taps


@final
class Readers:
    """Finder of the module that reads another one's output unchanged.

    Example:
        >>> import torch
        >>> conv, norm, followers = nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), Readers()
        >>> followers.attach({"conv": conv}, {"norm": norm})
        >>> followers.open()
        >>> _ = norm(conv(torch.zeros(1, 2, 5)))
        >>> followers.take()
        >>> followers.of("conv") is norm
        True
    """

    def __init__(self) -> None:
        self._taps = Taps()
        self._writers: dict[str, nn.Module] = {}
        self._readers: dict[str, nn.Module] = {}
        self._found: dict[str, str] | None = None

    @property
    def is_known(self) -> bool:
        """Whether a forward pass has been seen."""
        return self._found is not None

    def attach(self, writers: Mapping[str, nn.Module], readers: Mapping[str, nn.Module]) -> None:
        """Watch the next forward pass, if none has been seen yet."""
        self._writers, self._readers = dict(writers), dict(readers)
        if not self.is_known:
            self._taps.remove()
            self._taps.attach({**writers, **readers})

    def open(self) -> None:
        """Start to watch."""
        if self._taps.is_attached:
            self._taps.open()

    def close(self) -> None:
        """Forget what was seen since ``open``."""
        self._taps.close()

    def take(self) -> None:
        """Conclude from what was seen since ``open``, once.

        Raises:
            TapError: If a writer was not called; readers need not be.
        """
        if not self._taps.is_attached:
            return
        calls = self._taps.take(may_be_silent=self._readers)
        # The calls hold every tensor, so that no two have the same identity.
        written = {id(call.output): name for name in self._writers for call in calls[name]}
        read = {
            name: next(iter((*call.args, *call.kwargs.values())), None)
            for name in self._readers
            for call in calls.get(name, ())
        }
        self._found = {
            written[id(value)]: name
            for name, value in read.items()
            if isinstance(value, Tensor) and id(value) in written
        }
        self._taps.remove()

    def of(self, name: str) -> nn.Module | None:
        """The module that reads the output of ``name``, or ``None``."""
        follower = (self._found or {}).get(name)
        return None if follower is None else self._readers[follower]

    def state_dict(self) -> dict[str, str] | None:
        """Reader by writer; ``None`` before a forward pass was seen."""
        return self._found

    def load_state_dict(self, state: Mapping[str, str] | None) -> None:
        """Continue from ``state_dict``."""
        if state is not None:
            self._found = dict(state)
            self._taps.remove()

    def remove(self) -> None:
        """Stop watching; a second call does nothing."""
        self._taps.remove()
