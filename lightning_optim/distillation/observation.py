"""Observations: what a transfer loss sees of a network in one of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn

from lightning_optim.distillation.place import Features, Place
from lightning_optim.errors import TapError
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.tap import ModuleCall, Taps


@final
@dataclass(frozen=True, slots=True)
class Observation:
    """One call of a network, and what was at the places that a loss named.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        output: What the network returned.
        features: A tensor for each place, in the order of the loss's pairs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    features: tuple[Tensor, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Recording:
    """One call of a network, and what was at all places that losses named.

    Args:
        call: The call.
        features: The tensors by place.
    """

    call: ModuleCall
    features: Features = field(default_factory=dict)

    def at(self, places: Iterable[Place]) -> Observation:
        """What a loss sees that named these places."""
        tensors = tuple(self.features[place] for place in places)
        return Observation(self.call.args, self.call.kwargs, self.call.output, tensors)


@final
class FeatureTaps:
    """Recorder of places of one network; only what is asked for is recorded.

    Example:
        >>> import torch
        >>> net, taps = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), FeatureTaps()
        >>> taps.attach(net, [Place("0")])
        >>> taps.open()
        >>> call = ModuleCall((torch.ones(4, 2),), {}, net(torch.ones(4, 2)))
        >>> [tuple(recording.features[Place("0")].shape) for recording in taps.take([call])]
        [(4, 3)]
    """

    def __init__(self) -> None:
        self._taps = Taps()
        self._places: tuple[Place, ...] = ()

    def attach(self, root: nn.Module, places: Iterable[Place]) -> None:
        """Set hooks on the modules of ``places`` in ``root``; what was set before is taken off."""
        self.remove()
        self._places = tuple(dict.fromkeys(places))
        paths = dict.fromkeys(place.path for place in self._places)
        self._taps.attach({path: submodule(root, path) for path in paths})

    def open(self) -> None:
        """Forget what was seen and start to record."""
        self._taps.open()

    def close(self) -> None:
        """Stop recording and forget what was seen."""
        self._taps.close()

    def take(self, calls: Sequence[ModuleCall]) -> list[Recording]:
        """Stop recording, and add to each call of the network what was seen in it.

        Args:
            calls: The network's calls since ``open``.

        Raises:
            TapError: If a module did not run, or not once in each call.
        """
        seen = self._taps.take()
        for path, found in seen.items():
            if len(found) != len(calls):
                raise TapError(
                    f"{path!r} ran {len(found)} times in {len(calls)} calls of the network, so it is not clear which "
                    "of them is meant: look at a module that runs once in each call"
                )
        return [
            Recording(call, {place: place.read(seen[place.path][turn]) for place in self._places})
            for turn, call in enumerate(calls)
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        self._taps.remove()
        self._places = ()
