"""Search dimension: one kind of thing that may vary, and the site where it is attached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.switchable import switchable_forwards
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.copies import copy_model, eval_copy
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.tap import ModuleCall, Taps
from lightning_optim.surgery.torch_private import pytree

if TYPE_CHECKING:
    from lightning_optim.graph.coupling import Coupling


@final
@dataclass(frozen=True, kw_only=True)
class Site:
    """Site of a search space: the model to which its dimensions are attached.

    Args:
        root: The whole model; module names are relative to it.
        network: Plain name, in ``root``, of the network that the example goes into; ``""`` is ``root``.
        args: Example positional inputs of the network, on its device; the first dimension of the first tensor
            counts samples.
        kwargs: Example keyword inputs.
        seed: Seeds the weights of added modules.
    """

    root: nn.Module
    network: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def num_samples(self) -> int:
        """Number of samples in the example."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)

    def calls(self, names: Sequence[str]) -> dict[str, ModuleCall]:
        """Return what goes into and comes out of each module, the first time that the example reaches it.

        Every option runs, so that modules are reached that were added to choose from.

        Raises:
            TargetError: If a module lies outside the network.
            TapError: If the example does not reach a module.
        """
        network = eval_copy(submodule(self.root, self.network))
        for forward in switchable_forwards(network):
            forward.superpose()
        taps = Taps()
        taps.attach({name: submodule(network, self.inner_name(name)) for name in names})
        taps.open()
        with torch.no_grad():
            network(*self.args, **self.kwargs)
        return {name: calls[0] for name, calls in taps.take().items()}

    @cached_property
    def coupling(self) -> Coupling:
        """Coupled channels, whichever options are active; names are relative to the network.

        Raises:
            CaptureError: If the network cannot be captured.
        """
        return _couple(submodule(self.root, self.network), self.args, self.kwargs)

    def couplings_of(self, names: Sequence[str]) -> dict[str, Coupling]:
        """Coupled channels of single modules, as the example reaches them; names are relative to each.

        Raises:
            CaptureError: If one cannot be captured.
            TapError: If the example does not reach a module.
        """
        calls = self.calls(names)
        return {name: _couple(submodule(self.root, name), calls[name].args, calls[name].kwargs) for name in names}

    def inner_name(self, name: str) -> str:
        """Name relative to the network of a module or parameter named relative to ``root``.

        Raises:
            TargetError: If it lies outside the network.
        """
        if not self.network:
            return name
        if not name.startswith(f"{self.network}."):
            raise TargetError(f"{name!r} lies outside the network {self.network!r}; narrow targets, or set network")
        return name.removeprefix(f"{self.network}.")

    def outer_name(self, name: str) -> str:
        """Name relative to ``root`` of a parameter named relative to the network."""
        return f"{self.network}.{name}" if self.network else name


def _couple(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coupling:
    # torch.export costs a second to import, and a space of operations alone does without.
    from lightning_optim.graph.capture import capture_network
    from lightning_optim.graph.coupling import couple

    network = copy_model(network)
    for forward in switchable_forwards(network):
        forward.superpose()
    return couple(capture_network(network, args, dict(kwargs)))


class SearchDimension(ABC):
    """Search dimension: what may vary, and where.

    Attributes:
        adds_modules: Whether it adds modules to the network. Such dimensions are attached first, for the
            others must see what was added.
        rewires: Whether it exchanges what modules are given. Such dimensions come after those that exchange modules.
        slices_weights: Whether paths use parts of a weight, so that each rank must hold all of it.
    """

    adds_modules: ClassVar[bool]
    rewires: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = False

    @abstractmethod
    def attach(self, site: Site) -> list[Decision]:
        """Set switchable forwards on the modules chosen, and say what there is now to decide.

        Raises:
            TargetError: If a module cannot be treated.
        """
