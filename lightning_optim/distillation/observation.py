"""Observations: what a transfer loss sees of a network in one of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn

from lightning_optim.distillation.attention import Attention, AttentionTaps
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
        features: A tensor for each place, in the order of the loss's pairs; of an attention, what it is made of.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    features: tuple[Any, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Recording:
    """One call of a network, and what was at all places that losses named.

    Args:
        call: The call.
        features: What was there, by place.
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
        self._taps, self._attention = Taps(), AttentionTaps()
        self._places: tuple[Place, ...] = ()

    def attach(self, root: nn.Module, places: Iterable[Place]) -> None:
        """Set hooks on the modules of ``places`` in ``root``; what was set before is taken off."""
        self.remove()
        self._places = tuple(dict.fromkeys(places))
        modules = {place.path: submodule(root, place.path) for place in self._places}
        self._taps.attach(modules)
        self._attention.attach({place.path: modules[place.path] for place in self._places if place.part == "attention"})

    def open(self) -> None:
        """Forget what was seen and start to record."""
        self._taps.open()
        self._attention.open()

    def close(self) -> None:
        """Stop recording and forget what was seen."""
        self._taps.close()
        self._attention.close()

    def take(self, calls: Sequence[ModuleCall]) -> list[Recording]:
        """Stop recording, and add to each call of the network what was seen in it.

        Args:
            calls: The network's calls since ``open``.

        Raises:
            TapError: If a module did not run, or not once in each call, or computes no attention, or several.
        """
        seen, attended = self._taps.take(), self._attention.take()
        for path, found in seen.items():
            if len(found) != len(calls):
                raise TapError(
                    f"{path!r} ran {len(found)} times in {len(calls)} calls of the network, so it is not clear which "
                    "of them is meant: look at a module that runs once in each call"
                )

        def read(place: Place, turn: int) -> Any:
            if place.part == "attention":
                return _only(place.path, attended[place.path][turn])
            return place.read(seen[place.path][turn])

        return [
            Recording(call, {place: read(place, turn) for place in self._places}) for turn, call in enumerate(calls)
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        self._taps.remove()
        self._attention.remove()
        self._places = ()


def _only(path: str, found: Sequence[Attention]) -> Attention:
    if len(found) == 1:
        return found[0]
    if found:
        raise TapError(f"{path!r} computes {len(found)} attentions in one pass: name the modules inside it, one each")
    raise TapError(
        f"{path!r} computes no attention that can be seen: neither nn.MultiheadAttention nor "
        "scaled_dot_product_attention is called in it, or it is compiled. Name the module that does; of a transformers "
        "model, set attn_implementation='sdpa'"
    )
