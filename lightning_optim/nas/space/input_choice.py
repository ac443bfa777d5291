"""Input choice: a module's own input, or the outputs of earlier modules."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.chosen_input import ChosenInput, chosen_inputs
from lightning_optim.nas.forward.wire import OWN, Argument, InputAdapters, Wire
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.call_order import Arrival, CallOrder
from lightning_optim.nas.space.input_adapter import has_features_last, input_adapter
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.select import Targets, submodule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class InputChoice(SearchDimension):
    """Input choice (connections): each target runs on its own input or on what earlier modules have put out.

    It searches the wiring of a network whose forward is plain Python: which stage a head reads, which of the earlier
    layers feed a layer (Pham et al., 2018; arXiv:1802.03268, section 2.2), which edges of a cell exist (Liu et al.,
    2019; arXiv:1806.09055, section 2.1). The user's code runs as it is; hooks exchange the argument. What only the own
    input needed still runs, and its costs count; it is no part of the extracted network's ONNX file.

    Where shapes differ, an adapter is put in, and the option's text names it: average pooling or repetition for the
    sizes of a map, a 1 x 1 convolution for its channels, a linear layer for the last dimension of a sequence. Adapters
    lie below ``<target>._candidates`` until the pick is extracted, then in the target as ``_input_<argument>``.

    An extracted network has hooks where it is rewired: plain objects, copied and pickled with it, which need this
    package to be unpickled. Its ``state_dict`` loads into any extraction of the same architecture.

    Args:
        targets: Modules whose input is chosen; each match has decisions of its own.
        sources: Names of the modules that the inputs come from, relative to the LightningModule. All of them have
            returned a tensor when a target is called.
        combine: ``"one"`` takes one input, the own one being option 0. ``"sum"`` adds up several: each of them,
            ``own`` too, is a decision of its own, to be taken or not, and without any the input is zero.
        argument: Name of the argument that is exchanged; ``None`` is the first tensor of a call.

    Raises:
        ValueError: If there is no source, or one is given twice.

    Example:
        >>> InputChoice(targets=Targets(include=("net.head",)), sources=("net.stem", "net.top")).sources
        ('net.stem', 'net.top')
    """

    adds_modules: ClassVar[bool] = True
    rewires: ClassVar[bool] = True

    targets: Targets
    sources: Sequence[str]
    combine: Literal["one", "sum"] = "one"
    argument: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources must name at least one module, and each once, got {list(self.sources)}")

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, (nn.Module,))
        for target, source in [(target, source) for target in chosen for source in self.sources]:
            _refuse_cycle(target, source, chosen[target], submodule(site.root, source))
        order = CallOrder(site, list(chosen), self.sources)
        planned = [self._plan(name, module, order, site) for name, module in chosen.items()]
        forwards = [forward for each, _ in planned for forward in each]
        taken = {(forward.owner, forward.key) for forward in chosen_inputs(site.root)}
        for forward in forwards:
            if (forward.owner, forward.key) in taken or forward.key in vars(forward.owner)["_modules"]:
                raise TargetError(
                    f"{forward.wire.target!r} has a choice of this input already, or the adapters of one that was made "
                    "before; give it to one entry of one space"
                )
        for forward in forwards:
            forward.connect(site.root)
        return [decision for _, decisions in planned for decision in decisions]

    def _plan(
        self, name: str, module: nn.Module, order: CallOrder, site: Site
    ) -> tuple[list[ChosenInput], list[Decision]]:
        if name not in order.arrivals:
            raise TargetError(f"the example does not reach {name!r}; take it out of targets, or give another example")
        if name in order.changes_input:
            raise TargetError(
                f"{name!r} changes its input in place, and would change what others read of a source; build it with "
                "inplace=False"
            )
        arrival = order.arrivals[name]
        argument = _argument(name, module, arrival, self.argument)
        needed = argument.read(arrival.args, arrival.kwargs)
        adapters: dict[str, nn.Module] = {}
        texts: list[str] = []
        for source in self.sources:
            given = _output(name, source, arrival, order.outputs)
            adapters[source], text = _adapter(name, source, module, given, needed, site.seed)
            texts.append(f"{source} ({text})" if text else source)
        scope = arrival.scope_of(self.sources)
        title = name if self.argument is None else f"{name}:{self.argument}"

        def chosen(decision: Decision, sources: Sequence[str], takes: Sequence[tuple[int, ...]]) -> ChosenInput:
            held = InputAdapters({source: adapters[source] for source in sources})
            return ChosenInput(module, Wire(name, sources, argument, held, (OWN,)), scope, decision.name, takes)

        if self.combine == "one":
            decision = Decision(name=f"{title}:input", options=("own", *texts), default=OWN)
            return [chosen(decision, self.sources, [(index,) for index in range(len(texts) + 1)])], [decision]
        own = Decision(name=f"{title}:input:own", options=("without", "with own"), default=1)
        edges = {source: Decision(name=f"{title}:input:{source}", options=("without", f"with {text}"), default=0)
                 for source, text in zip(self.sources, texts, strict=True)}  # fmt: skip
        # The last that is set runs first: the own input is left out before anything is added to it.
        forwards = [chosen(decision, [source], [(OWN,), (OWN, 1)]) for source, decision in reversed(edges.items())]
        return [*forwards, chosen(own, [], [(), (OWN,)])], [own, *edges.values()]


def _refuse_cycle(target: str, source: str, module: nn.Module, given: nn.Module) -> None:
    if type(module).forward is nn.Module.forward:
        raise TargetError(f"{target!r} is a {type(module).__name__} and never called; choose among what lies in it")
    if given in set(module.modules()):
        what = "is" if given is module else "lies inside"
        raise TargetError(f"{source!r} {what} {target!r} and cannot feed it: the network would have a cycle")
    if module in set(given.modules()):
        raise TargetError(f"{source!r} holds {target!r} and returns after it: the network would have a cycle")


def _argument(name: str, module: nn.Module, arrival: Arrival, wanted: str | None) -> Argument:
    names = list(inspect.signature(module.forward).parameters.values())
    positional = [each.name for each in names if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if wanted is None:
        given = [*enumerate(arrival.args), *arrival.kwargs.items()]
        key = next((key for key, value in given if isinstance(value, Tensor)), None)
        if key is None:
            raise TargetError(f"{name!r} is called without a tensor among its arguments, and has no input to choose")
        if isinstance(key, int):
            return Argument(position=key, name=positional[key] if key < len(positional) else None)
        wanted = str(key)
    argument = Argument(position=positional.index(wanted) if wanted in positional else None, name=wanted)
    if not isinstance(argument.read(arrival.args, arrival.kwargs), Tensor):
        raise TargetError(
            f"{name!r} is not called with a tensor as {wanted!r}; it takes {[each.name for each in names]}"
        )
    return argument


def _output(target: str, source: str, arrival: Arrival, outputs: Mapping[str, Any]) -> Tensor:
    if source not in outputs:
        raise TargetError(f"the example does not reach {source!r}, whose output {target!r} is to take")
    if source not in arrival.outputs:
        raise TargetError(f"{source!r} has not run yet when {target!r} does; name modules that run before it")
    given = arrival.outputs[source]
    if not isinstance(given, Tensor):
        kind = type(given).__name__
        raise TargetError(
            f"{source!r} must put out a tensor for {target!r} to take it, got a {kind}; name a module in it"
        )
    return given


def _adapter(
    target: str, source: str, module: nn.Module, given: Tensor, needed: Tensor, seed: int
) -> tuple[nn.Module, str]:
    with torch.random.fork_rng(devices=[]):  # the user's own random numbers go on as if nothing had been built
        torch.manual_seed(random.Random(f"{seed}/{target}/{source}").getrandbits(62))
        try:
            return input_adapter(given, needed, features_last=has_features_last(module, needed.dim()))
        except ValueError as error:
            raise TargetError(f"{target!r} cannot take the output of {source!r}: {error}") from error
