"""Masked norms: layers that take a statistic over channels, and leave out those that are masked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn
from torch.func import functional_call

from lightning_optim.surgery.attention import leave_fast_paths
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import CutPlan, apply_cut
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.torch_private import pytree

Place = tuple[int, Tensor, int]
"""Dimension, kept positions ``[n]``, and how many there are."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class MaskedNorm:
    """Masked norm: what a layer that takes a statistic over channels still sees of them.

    A weight that is zero takes a channel out of a convolution, but not out of a mean: a layer norm over 64 channels of
    which 32 are zero is another function than one over 32.

    Args:
        reads: What is left of its input.
        writes: What is left of its output; zeros stand for the rest.
        plan: What is left of its own tensors.

    Example:
        >>> import torch
        >>> half = torch.tensor([0, 1])
        >>> norm = MaskedNorm([(1, half, 4)], [(1, half, 4)], {"weight": [(0, half)], "bias": [(0, half)]})
        >>> net = nn.Sequential(nn.LayerNorm(4))
        >>> mask_norms(net, {"0": norm})
        >>> net(torch.tensor([[1.0, 3.0, 0.0, 0.0]])).round().tolist()
        [[-1.0, 1.0, 0.0, 0.0]]
        >>> mask_norms(net, {})
        >>> net(torch.tensor([[1.0, 3.0, 0.0, 0.0]])).round().tolist()
        [[0.0, 2.0, -1.0, -1.0]]
    """

    reads: list[Place]
    writes: list[Place]
    plan: CutPlan

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and integers."""
        plan = {name: [list(cut) for cut in cuts] for name, cuts in self.plan.items()}
        return {"reads": [*map(list, self.reads)], "writes": [*map(list, self.writes)], "plan": plan}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> MaskedNorm:
        """The norm that ``state_dict`` was taken from."""
        plan = {name: [(dim, kept) for dim, kept in cuts] for name, cuts in state["plan"].items()}
        return cls([(d, k, s) for d, k, s in state["reads"]], [(d, k, s) for d, k, s in state["writes"]], plan)

    def run(self, layer: nn.Module, small: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Call a layer as it will be once the channels are gone, and put zeros in their places.

        Args:
            layer: The layer, whose tensors are used and get the gradients.
            small: The layer after the cut; its own tensors are not looked at.
            args: Positional inputs at full size.
            kwargs: Keyword inputs.
        """
        tensors = dict(layer.named_buffers())
        for name, parameter in layer.named_parameters():
            places = self.plan.get(name, [])
            tensors[name] = _gathered(parameter, places) if places else parameter
        gathered = pytree.tree_map_only(Tensor, lambda value: _gathered(value, self.reads), (args, kwargs))
        return _scattered(functional_call(small, tensors, *gathered), self.writes)


def mask_norms(network: nn.Module, norms: Mapping[str, MaskedNorm], owner: str = "") -> None:
    """Let layers compute over what is left of their channels.

    A deep copy computes as the original; a pickle is of the layers as they are written.

    Args:
        network: The network, whose layers are called otherwise from now on.
        norms: Layer by its plain name.
        owner: Who says so; what it has said before of other layers no longer holds.
    """
    _lift(network, [over for over in _masked(network) if over.owner == owner])
    for name, norm in norms.items():
        layer = submodule(network, name)
        _OverKept(layer, norm, owner, _fast_paths(network, layer)).set()


@contextmanager
def whole_norms(network: nn.Module) -> Iterator[None]:
    """Let all layers of a network compute as they are written, for a time."""
    masked = _masked(network)
    _lift(network, masked)
    try:
        yield
    finally:
        for over in masked:
            over.set()


def drop_masked_norms(network: nn.Module) -> None:
    """Let all layers of a network compute as they are written."""
    _lift(network, _masked(network))


def _lift(network: nn.Module, masked: list[_OverKept]) -> None:
    for over in masked:
        over.lift()
    leave_fast_paths(network)  # of an attention that has been cut since


_FastPath = tuple[nn.Module, str, Any]
"""Module, its attribute that lets PyTorch pass over the modules below it, and the value of that."""


def _fast_paths(network: nn.Module, layer: nn.Module) -> list[_FastPath]:
    """What would evaluate a layer of PyTorch's encoders by one kernel that knows the layer's tensors alone."""
    found: list[_FastPath] = []
    for module in network.modules():
        if not any(part is layer for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            found.append((module, "use_nested_tensor", True))
        if isinstance(module, nn.TransformerEncoderLayer) and module.activation_relu_or_gelu:
            found.append((module, "activation_relu_or_gelu", module.activation_relu_or_gelu))
    return found


def _masked(network: nn.Module) -> list[_OverKept]:
    held = [vars(module).get("forward") for module in network.modules()]
    return [over for over in held if isinstance(over, _OverKept)]


@final
class _OverKept:
    """Stand-in for the ``forward`` of one layer."""

    def __init__(self, layer: nn.Module, norm: MaskedNorm, owner: str, fast_paths: list[_FastPath]) -> None:
        self.owner = owner
        self._layer, self._norm, self._fast_paths = layer, norm, fast_paths
        self._small = copy_model(layer)
        apply_cut(self._small, norm.plan)

    def set(self) -> None:
        """Take the place of the layer's ``forward``."""
        vars(self._layer)["forward"] = self
        for module, name, _ in self._fast_paths:
            setattr(module, name, 0)

    def lift(self) -> None:
        """Give the layer its own ``forward`` back."""
        del vars(self._layer)["forward"]
        for module, name, value in self._fast_paths:
            setattr(module, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._norm.run(self._layer, self._small.train(self._layer.training), args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _OverKept:
        twin = copy.copy(self)
        twin._layer = memo.get(id(self._layer), self._layer)
        twin._small = copy.deepcopy(self._small, memo)
        twin._fast_paths = [(memo.get(id(module), module), name, value) for module, name, value in self._fast_paths]
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._layer, "forward")  # of a layer that is being unpickled, the class alone answers


def _gathered(value: Tensor, places: Any) -> Tensor:
    for dim, kept, *_ in places:
        value = value.index_select(dim, kept.to(value.device))
    return value


def _scattered(value: Tensor, places: list[Place]) -> Tensor:
    for dim, kept, size in places:
        shape = [size if place == dim else length for place, length in enumerate(value.shape)]
        value = value.new_zeros(shape).index_copy(dim, kept.to(value.device), value)
    return value
