"""Chosen input: a module runs on its own input or on what earlier modules have put out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.choice import RESERVED, Candidates
from lightning_optim.nas.forward.mixture import MixedForward, Mixture, run_mixture
from lightning_optim.nas.forward.skipped import SkippedForward
from lightning_optim.nas.forward.switchable import GatingForward, switchable_forwards
from lightning_optim.nas.forward.wire import OWN, InputAdapters, Wire
from lightning_optim.surgery.pass_through import PassThrough
from lightning_optim.surgery.select import submodule


@final
class ChosenInput(MixedForward):
    """Chosen input: replaces one argument of the owner's forward.

    Args:
        owner: The module whose input is chosen.
        wire: Brings the outputs of the sources; its adapters go below the one reserved prefix.
        scope: Name, in the whole model, of the module in each call of which owner and sources run.
        decision: Name of the decision.
        takes: By option, the indices of the inputs that are added up.
    """

    def __init__(
        self, owner: nn.Module, wire: Wire, scope: str, decision: str, takes: Sequence[tuple[int, ...]]
    ) -> None:
        super().__init__(owner)
        self.wire, self.scope, self.decision, self._takes = wire, scope, decision, tuple(takes)
        self._option = self._takes.index((OWN,))
        self._mixture: Mixture | None = None
        self._handles: list[RemovableHandle] = []
        wire.adapters.train(owner.training)

    @property
    @override
    def follows(self) -> Set[str]:
        return {self.decision}

    @property
    @override
    def runs_as_built(self) -> bool:
        return self.wire.takes == (OWN,)

    @property
    def key(self) -> str:
        """Name of the adapters' container: one for each argument of the owner."""
        return f"_input_{self.wire.argument.name or 'first'}"

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._mixture is None:
            args, kwargs = self.wire.rewire(self.owner, args, kwargs)
            return self.__wrapped__(*args, **kwargs)
        mixed = run_mixture(
            self._mixture,
            lambda option, own: self.wire.combine(self._takes[option], own),
            self.wire.argument.read(args, kwargs),
        )
        self.wire.finish()
        args, kwargs = self.wire.argument.replaced(args, kwargs, mixed)
        return self.__wrapped__(*args, **kwargs)

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._option, self._mixture = architecture.get(self.decision, self._option), None
        self.wire.takes = self._takes[self._option]

    @override
    def mix(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self.wire.takes = tuple({index: None for option in mixture.weights for index in self._takes[option]})

    @override
    def forget(self, decisions: Set[str]) -> None:
        assert self.decision not in decisions, "it has one decision and is detached with it"

    @override
    def superpose(self) -> None:
        self._mixture, self.wire.takes = None, tuple(range(len(self.wire.sources) + 1))

    def connect(self, root: nn.Module) -> None:
        """Take the place of the owner's forward, and follow the sources.

        Args:
            root: The whole model.
        """
        super().attach()
        children = vars(self.owner)["_modules"]
        if RESERVED not in children:
            self.owner.add_module(RESERVED, Candidates({}).train(self.owner.training))
        adapters = vars(children[RESERVED])["_modules"].setdefault(self.key, InputAdapters({}))
        adapters.update(self.wire.adapters)
        sources = [submodule(root, source) for source in self.wire.sources]
        self._handles = self.wire.attach(submodule(root, self.scope), sources)

    @override
    def detach(self) -> None:
        super().detach()
        while self._handles:
            self._handles.pop().remove()
        children = vars(self.owner)["_modules"]
        if RESERVED in children:
            vars(children[RESERVED])["_modules"].pop(self.key, None)
            if not vars(children[RESERVED])["_modules"]:
                del children[RESERVED]

    @override
    def extracted(self) -> nn.Module:
        return self.owner  # which is rewired once all is in its place

    def plain(self, root: nn.Module) -> PlainWire:
        """What replaces it in an extracted model."""
        taken = [index for index in self.wire.takes if index != OWN]
        names = [self.wire.sources[index - 1] for index in taken]
        adapters = InputAdapters({name: self.wire.adapters.of(name) for name in names})
        takes = [*([OWN] if OWN in self.wire.takes else []), *range(1, len(names) + 1)]
        wire = Wire(self.wire.target, names, self.wire.argument, adapters, takes)
        sources = [submodule(root, name) for name in names]
        return PlainWire(self.owner, submodule(root, self.scope), sources, wire, self.key)


@final
@dataclass(frozen=True, slots=True)
class PlainWire:
    """Wire of an extracted model: hooks that a copy or a pickle of the model has too.

    Args:
        target: The module whose input is replaced.
        scope: The module in each call of which it and the sources run.
        sources: Where the inputs come from.
        wire: Their hooks.
        key: Name of the adapters among the target's children, if there is any to speak of.
    """

    target: nn.Module
    scope: nn.Module
    sources: list[nn.Module]
    wire: Wire
    key: str

    def install(self, root: nn.Module, replaced: Mapping[nn.Module, nn.Module | None]) -> None:
        """Set the hooks on the modules that have taken their places, if the target is there and not on its own input.

        Args:
            root: The extracted model.
            replaced: What has taken the place of which module.
        """
        target, scope, *sources = (replaced.get(module, module) for module in (self.target, self.scope, *self.sources))
        # A skipped block hands on what it is given itself.
        if target not in set(root.modules()) or isinstance(target, PassThrough) or self.wire.takes == (OWN,):
            return
        assert target is not None, "what is left out is not among the modules"
        assert scope is not None, "it holds the target"
        self.wire.attach(scope, [source for source in sources if source is not None])
        target.register_forward_pre_hook(self.wire.rewire, with_kwargs=True)
        if any(not isinstance(adapter, nn.Identity) for adapter in self.wire.adapters.children()):
            vars(target)["_modules"].setdefault(self.key, InputAdapters({})).update(self.wire.adapters)


def chosen_inputs(root: nn.Module) -> list[ChosenInput]:
    """Every chosen input in ``root``."""
    return [forward for forward in switchable_forwards(root) if isinstance(forward, ChosenInput)]


def check_sources_run(root: nn.Module) -> None:
    """Refuse a source that another choice may leave out, where its target runs all the same.

    A block that may be skipped, and feeds another module by what it hands on, keeps its place in the extracted network.

    Raises:
        TargetError: Naming both.
    """
    gates = [(gating, modules) for gating in switchable_forwards(root) if isinstance(gating, GatingForward)
             for modules, _ in gating.gates()]  # fmt: skip
    for forward in chosen_inputs(root):
        for name in forward.wire.sources:
            source = submodule(root, name)
            for gating, modules in gates:
                if source not in modules or forward.owner in modules:
                    continue
                if source is not gating.owner:
                    raise TargetError(
                        f"{name!r} feeds {forward.wire.target!r}, but lies inside a choice that may leave it out; name "
                        "the module that is chosen as the source, or take it out of that choice"
                    )
                if isinstance(gating, SkippedForward):
                    gating.is_removable = False
