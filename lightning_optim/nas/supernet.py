"""Supernet: a model that holds every architecture of a space at once, with shared weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import final

from torch import Tensor, nn

from lightning_optim.cost.base import Cost
from lightning_optim.cost.macs import MACs
from lightning_optim.errors import TargetError
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.forward.chosen_input import check_sources_run, chosen_inputs
from lightning_optim.nas.forward.fused import attach_fused
from lightning_optim.nas.forward.sliced import SlicedForward, cut_plan
from lightning_optim.nas.forward.switchable import activate, put_in_place, strip, switchable_forwards
from lightning_optim.nas.option_check import check_every_option
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.conditions import with_conditions
from lightning_optim.nas.space_description import SpaceDescription
from lightning_optim.search.decision import Decision
from lightning_optim.search.space import SearchSpace
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import apply_cut
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.rounded import rounded_layers
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.torch_private import pytree

_SPACES = "_nas_spaces"


@final
class Supernet:
    """Supernet: a converted model and its decisions.

    Args:
        site: The model and an example of what goes into its network.
        decisions: What there is to decide, in a fixed order.
    """

    def __init__(self, site: Site, decisions: Sequence[Decision]) -> None:
        self.site, self.space = site, SearchSpace(decisions)
        self._costs: dict[tuple[str, tuple[int, ...]], float] = {}
        self._counted: nn.Module | None = None  # on the meta device where every path so far runs there

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What there is to decide, in a fixed order."""
        return self.space.decisions

    @property
    def default(self) -> Architecture:
        """The user's own network: own operations at full width."""
        return self.space.default

    def sample(self, seed: int, step: int) -> Architecture:
        """Draw an architecture uniformly, as a function of ``(seed, step)`` alone.

        Every rank of a job, and every resumed run, thus draws the same without communication.
        """
        # A string seeds through SHA-512: the same on every platform, and unlike hash() in every process.
        return self.space.sample(random.Random(f"{seed}/{step}"))

    def activate(self, architecture: Mapping[str, int]) -> None:
        """Make the model run one path, until the next call.

        Raises:
            ValueError: If the architecture is not one of this space.
        """
        activate(self.site.root, self.space.canonical(architecture))

    def measure(self, architecture: Mapping[str, int], cost: Cost) -> float:
        """Cost of one path, measured once per architecture.

        Args:
            architecture: The path.
            cost: MACs are those of one sample. Any other cost measures the network as ``extract`` returns it, on the
                CPU, called on the example: the supernet itself holds every option.

        Raises:
            ValueError: If the architecture is not one of this space.
        """
        checked = self.space.canonical(architecture)
        key = (repr(cost), tuple(checked.values()))
        if key not in self._costs:
            measured = self._measured_path if isinstance(cost, MACs) else self._measured_copy
            self._costs[key] = measured(checked, cost)
        return self._costs[key]

    def find_cheapest(self, cost: Cost) -> Architecture:
        """The architecture of the lowest cost, deciding one thing at a time."""
        return self._find(cost, min)

    def find_costliest(self, cost: Cost) -> Architecture:
        """The architecture of the highest cost, deciding one thing at a time."""
        return self._find(cost, max)

    def _find(self, cost: Cost, choose: Callable[[list[float]], float]) -> Architecture:
        found = self.default
        for decision in self.decisions:
            costs = [self.measure({**found, decision.name: option}, cost) for option in range(len(decision.options))]
            found[decision.name] = costs.index(choose(costs))
        return self.space.canonical(found)

    def describe(self, cost: Cost | None = None) -> SpaceDescription:
        """Say what can vary, how many architectures there are, and the range of their costs.

        Args:
            cost: As ``measure`` takes it; ``None`` counts MACs. A cost that is measured takes its time for each option.

        Example:
            >>> import torch
            >>> from lightning_optim.nas import ElasticWidth
            >>> from lightning_optim import Targets
            >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> widths = ElasticWidth(targets=Targets(include=["0"]), fractions=(0.5, 1.0))
            >>> supernet = build_supernet(Site(root=net, network="", args=(torch.ones(1, 4),)), {"widths": widths})
            >>> print(supernet.describe())
            1 decision, 2 architectures
            MACs from 24 to 48, deciding one thing at a time; the own network has 48
              0:width  4 | [8]
        """
        cost = MACs() if cost is None else cost
        ends = [self.find_cheapest(cost), self.default, self.find_costliest(cost)]
        cheapest, own, dearest = (self.measure(architecture, cost) for architecture in ends)
        return SpaceDescription(
            decisions=self.decisions,
            num_architectures=self.space.num_candidates,
            cost=type(cost).__name__,
            cheapest=cheapest,
            own=own,
            dearest=dearest,
        )

    def extract(self, architecture: Mapping[str, int]) -> nn.Module:
        """Return one path as a plain model.

        Args:
            architecture: What to choose.

        Returns:
            A copy of the whole model without any trace of the search: chosen candidates in the place of the
            targets, layers cut to their width. It returns what the path returns, bit for bit.

        Raises:
            ValueError: If the architecture is not one of this space.
        """
        checked = self.space.canonical(architecture)
        model = copy_model(self.site.root)
        activate(model, checked)
        plan = cut_plan(model)
        if plan:
            apply_cut(model, plan)
        plain = [(forward.owner, forward.extracted()) for forward in switchable_forwards(model)]
        wires = [forward.plain(model) for forward in chosen_inputs(model)]
        strip(model)
        vars(model).pop(_SPACES, None)
        replaced = {owner: module for owner, module in plain if module is not owner}
        put_in_place(model, replaced)
        for wire in reversed(wires):  # hooks run in their order, forwards the last that was set first
            wire.install(model, replaced)
        return model

    def _measured_path(self, architecture: Architecture, cost: Cost) -> float:
        # Options that do not run are not counted, so nothing needs to be extracted.
        network = submodule(self.site.root, self.site.network)
        if self._counted is None:
            self._counted = copy_model(network).to("meta")
        activate(self._counted, architecture)
        try:
            return cost.measure(self._counted, self._inputs()) // self.site.num_samples
        except Exception:  # whatever a path may raise that makes or reads tensors on a device of its own
            if not any(parameter.is_meta for parameter in self._counted.parameters()):
                raise
        self._counted = copy_model(network).cpu()
        return self._measured_path(architecture, cost)

    def _measured_copy(self, architecture: Architecture, cost: Cost) -> float:
        network = submodule(self.extract(architecture), self.site.network).cpu()
        return cost.measure(network, self._inputs())

    def _inputs(self) -> Inputs:
        given = (self.site.args, dict(self.site.kwargs))
        return Inputs(*pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, given))


def build_supernet(site: Site, space: Mapping[str, SearchDimension], name: str = "") -> Supernet:
    """Convert a model in place; if anything is wrong with the space, it is left as it was.

    Own parameters keep their names and stay the same objects, so an optimizer, a checkpoint or a
    reference to them stays right. A model that was converted with this space before is taken as it is.

    Args:
        site: The model, and an example of what goes into its network.
        space: What may vary, by a name of the user's choice.
        name: Tells several supernets in one model apart.

    Returns:
        The supernet, with the user's own path active.

    Raises:
        TargetError: If a target is wrong, an option does not run on the example, or the model was converted
            under this name with another space.
        CaptureError: If widths vary and the network cannot be captured.

    Example:
        >>> import torch
        >>> from lightning_optim.nas import OperationChoice
        >>> from lightning_optim import Targets
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> choice = OperationChoice(targets=Targets(include=["0"]), candidates={"skip": nn.Identity})
        >>> supernet = build_supernet(Site(root=net, network="", args=(torch.ones(1, 4),)), {"mix": choice})
        >>> [supernet.measure({"0:operation": option}, MACs()) for option in (0, 1)]
        [16.0, 0.0]
    """
    if not space:
        raise ValueError("a search needs a space with at least one entry, got none")
    signature = _signature(space)
    known: dict[str, tuple[str, tuple[Decision, ...]]] = vars(site.root).get(_SPACES, {})
    if name in known:
        if known[name][0] != signature:
            raise TargetError("the model was converted with another space before; extract from it, or take a fresh one")
        return Supernet(site, known[name][1])
    supernet = _attached(site, space)
    vars(site.root)[_SPACES] = {**known, name: (signature, supernet.decisions)}
    return supernet


def _attached(site: Site, space: Mapping[str, SearchDimension]) -> Supernet:
    rounded = next(iter(rounded_layers(site.root).items()), None)
    if rounded is not None:
        name, (_, widths) = rounded
        raise TargetError(
            f"{name!r} rounds to {widths} as an earlier search has chosen, and would round before what varies now; "
            "take that off with release_bits first"
        )
    before = switchable_forwards(site.root)
    has_slices = any(isinstance(forward, SlicedForward) for forward in before)
    early = [key for key, dimension in space.items() if not dimension.slices_weights]
    if has_slices and early:
        raise TargetError(
            f"widths vary already and would not know of {early[0]!r}; put it into the same space, or convert with it "
            "first"
        )
    decisions: list[Decision] = []
    try:
        # Widths must see all that may run; a block is skipped with the choice of its operation, and a module that is
        # rewired runs whichever operation was chosen for it.
        for dimension in sorted(
            space.values(), key=lambda each: (not each.adds_modules, each.rewires, each.slices_weights)
        ):
            decisions += dimension.attach(site)
        _refuse_twice(decisions)
        attach_fused(site.root)
        check_sources_run(site.root)
        supernet = Supernet(site, with_conditions(site.root, decisions))
        check_every_option(site, supernet.space)
    except BaseException:
        ours = {
            slicing
            for forward in switchable_forwards(site.root)
            if isinstance(forward, SlicedForward)
            for slicing in forward.follows
        }
        theirs = {decision.name for _, decided in vars(site.root).get(_SPACES, {}).values() for decision in decided}
        strip(site.root, keep=before, forget=ours - theirs)
        raise
    return supernet


def _refuse_twice(decisions: Sequence[Decision]) -> None:
    names = [decision.name for decision in decisions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TargetError(f"two entries of the space decide {twice!r}; narrow the targets of one of them")


def _signature(space: Mapping[str, SearchDimension]) -> str:
    # A candidate's factory has no comparable text; its name has.
    def text(value: object) -> object:
        return list(value) if isinstance(value, Mapping) else value

    return repr({
        key: (type(dimension).__name__, [text(getattr(dimension, field.name)) for field in fields(dimension)])  # type: ignore[arg-type]  # every dimension is a dataclass
        for key, dimension in space.items()
    })  # fmt: skip
