"""Learned values of quantizers, trained along with a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.quantizer.learner import Start, Values


@final
@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the values in the flat tensor, by name and in the order in which they lie there.

    Args:
        positive: Of the values whose logarithms are kept, which lie first.
        shifted: Of the values of which is kept what was added to their first entries.
    """

    positive: Mapping[str, torch.Size] = field(default_factory=dict)
    shifted: Mapping[str, torch.Size] = field(default_factory=dict)

    def state_dict(self) -> dict[str, dict[str, list[int]]]:
        """Return the sizes as primitives."""
        kinds = {"positive": self.positive, "shifted": self.shifted}
        return {kind: {name: list(size) for name, size in sizes.items()} for kind, sizes in kinds.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Mapping[str, Sequence[int]]]) -> Sizes:
        """Return the sizes of which ``state`` was taken."""
        return cls(**{kind: {name: torch.Size(size) for name, size in state[kind].items()} for kind in state})


@final
class LearnedValues:
    """What is learned about all weights and activations, in one flat tensor with one optimizer.

    Of positive values, such as step sizes, logarithms are kept: they stay positive, and Adam changes each by a share of
    itself. Other values are kept as what was added to their first entries, in units of their own. A simulated batch
    shows which values there are; from the next on they are trained.
    """

    def __init__(self) -> None:
        self._found: dict[str, Mapping[str, Start]] = {}
        self._parts: dict[str, dict[str, Tensor]] = {}
        self._sizes = Sizes()
        self._fixed = {name: torch.zeros(0) for name in ("bases", "units", "decays")}
        self._has_decay = False
        self._trained: Tensor
        self._start_optimizer(torch.zeros(0))

    @property
    def keys(self) -> tuple[str, ...]:
        """Whose values are trained."""
        return tuple(self._parts)

    @property
    def found_keys(self) -> tuple[str, ...]:
        """What was found and waits for ``start``, in order of names."""
        return tuple(sorted(self._found))

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self._trained.device

    @property
    def trained(self) -> Tensor:
        """All values, as they are trained, flat."""
        return self._trained

    @contextmanager
    def read_from(self, trained: Tensor) -> Iterator[None]:
        """Let ``refresh`` read another flat tensor inside, such as one that is traced."""
        own, self._trained = self._trained, trained
        try:
            yield
        finally:
            self._trained = own
            self.refresh()

    @property
    def found(self) -> dict[str, Mapping[str, Start]]:
        """What was found, on the CPU: other processes may take it in."""
        return {key: {name: _on_cpu(start) for name, start in values.items()} for key, values in self._found.items()}

    def lacks(self, key: str) -> bool:
        """Whether values are neither trained nor found yet."""
        return key not in self._parts and key not in self._found

    def is_untrained(self, key: str) -> bool:
        """Whether values are not trained yet."""
        return key not in self._parts

    @contextmanager
    def read_once_more(self) -> Iterator[None]:
        """Read the values anew for what runs inside, which is to have a graph of its own."""
        parts = self._parts
        self.refresh()
        try:
            yield
        finally:
            self._parts = parts

    def find(self, key: str, values: Mapping[str, Start]) -> None:
        """Take note of first values, by name."""
        self._found.setdefault(key, values)

    def start(self, device: torch.device | None = None) -> None:
        """Train what was found from now on, beside what is trained already.

        Args:
            device: Where; ``None`` is where it was found.
        """
        found = {f"{key}/{name}": start for key in self.found_keys for name, start in self._found[key].items()}
        self._found = {}
        positive = {name: start for name, start in found.items() if start.unit is None}
        shifted = {name: (start.value, start.unit) for name, start in found.items() if start.unit is not None}
        self._sizes = Sizes(
            positive={**self._sizes.positive, **{name: start.value.shape for name, start in positive.items()}},
            shifted={**self._sizes.shifted, **{name: value.shape for name, (value, _) in shifted.items()}},
        )
        device = device or next(iter(found.values())).value.device
        more = {
            "bases": _flat([value for value, _ in shifted.values()], device),
            "units": _flat([unit for _, unit in shifted.values()], device),
            "decays": _flat([torch.full_like(start.value, start.decay) for start in positive.values()], device),
        }
        self._widen(_flat([start.value for start in positive.values()], device).log(), more)
        self.refresh()

    def _widen(self, logarithms: Tensor, more: Mapping[str, Tensor]) -> None:
        """Make room in the flat tensor, in its gradient and in what the optimizer knows."""
        device, num_positive = logarithms.device, self._fixed["decays"].numel()
        ends = torch.zeros_like(logarithms), torch.zeros_like(more["bases"])

        def wider(flat: Tensor, first: Tensor = ends[0]) -> Tensor:
            known = flat.detach().to(device)
            return torch.cat([known[:num_positive], first, known[num_positive:], ends[1]])

        gradient, state = self._trained.grad, self._optimizer.state_dict()
        self._fixed = {name: torch.cat([known.to(device), more[name]]) for name, known in self._fixed.items()}
        self._start_optimizer(wider(self._trained, logarithms))
        if state["state"]:
            moments = state["state"][0]
            moments.update({name: wider(moments[name]) for name in ("exp_avg", "exp_avg_sq")})
            self._optimizer.load_state_dict(state)
        self._trained.grad = None if gradient is None else wider(gradient)

    def take_in(self, found: Mapping[str, Mapping[str, Start]]) -> None:
        """Take note of what another process found, too."""
        for key, values in found.items():
            self._found.setdefault(key, values)

    def discard(self) -> None:
        """Forget what an unfinished batch showed."""
        self._found = {}

    def refresh(self) -> None:
        """Read the values anew: once for every forward pass, since a graph serves only once."""
        num_positive = self._fixed["decays"].numel()
        self._parts = {}
        if not self._trained.numel():
            return
        self._read(self._trained[:num_positive].exp(), self._sizes.positive)
        self._read(self._fixed["bases"] + self._fixed["units"] * self._trained[num_positive:], self._sizes.shifted)

    def _read(self, flat: Tensor, sizes: Mapping[str, torch.Size]) -> None:
        parts = torch.split(flat, [size.numel() for size in sizes.values()]) if sizes else ()
        for (name, size), part in zip(sizes.items(), parts, strict=True):
            key, _, own = name.rpartition("/")
            self._parts.setdefault(key, {})[own] = part.view(size)

    def values(self, key: str, device: torch.device) -> Values | None:
        """Return what was learned under a key, by name, on a device; ``None`` if nothing was."""
        if key not in self._parts:
            return None
        return {name: value.to(device) for name, value in self._parts[key].items()}

    def update(self, mean: Callable[[Tensor], Tensor], learning_rate: float, loss_scale: float = 1.0) -> None:
        """Take one step of Adam, unless a gradient is not finite, and forget the gradient.

        Args:
            mean: Averages a tensor over all processes.
            learning_rate: Largest change, about: relative of a positive value, in its unit of another.
            loss_scale: What the loss was multiplied by.
        """
        gradient, self._trained.grad = self._trained.grad, None
        gradient = mean(torch.zeros_like(self._trained) if gradient is None else gradient) / loss_scale
        if gradient.isfinite().all():
            self._trained.grad = self._decayed(gradient)
            self._optimizer.param_groups[0]["lr"] = learning_rate
            self._optimizer.step()
            self._trained.grad = None
        self.refresh()

    def _decayed(self, gradient: Tensor) -> Tensor:
        """Add the gradient of ``decay / 2 * value ** 2``, as the logarithm of the value has it."""
        if not self._has_decay:
            return gradient
        decays = self._fixed["decays"]
        positive, rest = gradient.tensor_split([decays.numel()])
        logarithms = self._trained.detach()[: decays.numel()]
        return torch.cat([positive + decays * (2.0 * logarithms).exp(), rest])

    def move(self, device: torch.device) -> None:
        """Carry values and optimizer over to a device."""
        if self.keys and self.device != device:
            self.load_state_dict(self.state_dict(), device)

    def state_dict(self) -> dict[str, Any]:
        """Return values, gradient and optimizer, as primitives and tensors."""
        gradient = None if self._trained.grad is None else self._trained.grad.cpu().clone()
        own = {"sizes": self._sizes.state_dict(), **{name: value.cpu() for name, value in self._fixed.items()}}
        values = {"trained": self._trained.detach().cpu().clone(), "gradient": gradient}
        return {**own, **values, "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Take over what ``state_dict`` returned, on a device; ``None`` is where it lies."""
        self.discard()
        self._sizes = Sizes.from_state_dict(state["sizes"])
        self._fixed = {name: state[name].clone().to(device) for name in self._fixed}
        self._start_optimizer(state["trained"].clone().to(device))
        gradient = state["gradient"]
        self._trained.grad = None if gradient is None else gradient.clone().to(device)
        self._optimizer.load_state_dict(state["optimizer"])
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Leave what belongs to one forward pass out of copies: a graph cannot be copied."""
        return {**vars(self), "_found": {}, "_parts": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.refresh()

    def _start_optimizer(self, trained: Tensor) -> None:
        self._has_decay = bool(self._fixed["decays"].any())
        self._trained = trained.detach().requires_grad_()
        self._optimizer = torch.optim.Adam([self._trained])


def _on_cpu(start: Start) -> Start:
    unit = None if start.unit is None else start.unit.cpu()
    return Start(value=start.value.detach().cpu(), unit=unit, decay=start.decay)


def _flat(values: list[Tensor], device: torch.device) -> Tensor:
    return torch.cat(
        [torch.zeros(0, device=device), *(value.detach().to(device).float().flatten() for value in values)]
    )
