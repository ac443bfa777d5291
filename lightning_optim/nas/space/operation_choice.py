"""Operation choice: the user's own operation or one of the candidates."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError, reason_of
from lightning_optim.nas.forward.choice import RESERVED, Dispatch, output_layout
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.open_keywords import open_keywords
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.select import Targets
from lightning_optim.surgery.tap import ModuleCall

Candidate = nn.Module | Callable[..., nn.Module]


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class OperationChoice(SearchDimension):
    """Operation choice: each target is its own operation or one of the candidates (Guo et al., 2020; arXiv:1904.00420).

    The own operation is option 0 and keeps its place and its keys. Candidates lie below
    ``<target>._candidates`` until the pick is extracted, when the chosen one takes the target's place.

    Args:
        targets: The operations to choose; each match is a decision of its own.
        candidates: Other operations by name: a factory, called once per target, or a module, copied for each. They
            must take the target's input and return what it returns, shape by shape. A factory of layers on maps that
            leaves its ``in_channels``, ``out_channels`` or ``stride`` open is told them: ``partial(nn.Conv2d,
            kernel_size=1)`` fits targets of any size.
        alike: Regular expression that is sought in the names of targets; those with the same text in its groups are one
            decision, such as an edge that all cells of a kind have in common (Zoph et al., 2018; arXiv:1707.07012,
            section 3). ``None``, and where it is not found, makes each target a decision.

    Raises:
        ValueError: If there is no candidate, a name is no identifier, or ``alike`` is no regular expression.

    Example:
        >>> OperationChoice(targets=Targets(include=("net.mix",)), candidates={"skip": nn.Identity}).candidates
        {'skip': <class 'torch.nn.modules.linear.Identity'>}
    """

    adds_modules: ClassVar[bool] = True

    targets: Targets
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    alike: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", dict(self.candidates))
        if not self.candidates:
            raise ValueError("an operation choice needs at least one candidate beside the own operation, got none")
        try:
            re.compile(self.alike or "")
        except re.error as error:
            raise ValueError(f"alike must be a regular expression, got {self.alike!r}: {error}") from error
        for name in self.candidates:
            if not name.isidentifier() or name in ("own", *dir(nn.Module)):
                raise ValueError(f"a candidate's name must be a free identifier other than 'own', got {name!r}")

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, (nn.Module,))
        _refuse_overlap(chosen)
        calls = site.calls(list(chosen))
        added = {name: self._build(name, calls[name], site.seed) for name in chosen}
        leaders = self._leaders(list(chosen))
        for name, module in chosen.items():
            Dispatch(module, f"{leaders[name]}:operation", added[name]).attach()
        options = ("own", *self.candidates)
        names = dict.fromkeys(leaders.values())
        return [Decision(name=f"{name}:operation", options=options, default=0) for name in names]

    def _leaders(self, names: list[str]) -> dict[str, str]:
        """For each target the one after which its decision is named."""
        if self.alike is None:
            return {name: name for name in names}
        found = {name: re.search(self.alike, name) for name in names}
        if not any(found.values()):
            raise TargetError(
                f"alike={self.alike!r} is found in none of the targets {names[:5]}; mend it, or leave it out"
            )
        leaders: dict[tuple[Any, ...], str] = {}
        return {name: leaders.setdefault((name,) if match is None else match.groups(), name)
                for name, match in found.items()}  # fmt: skip

    def _build(self, name: str, call: ModuleCall, seed: int) -> dict[str, nn.Module]:
        like = next((leaf for leaf in call.args if isinstance(leaf, torch.Tensor)), torch.empty(0))
        built: dict[str, nn.Module] = {}
        with torch.random.fork_rng(devices=[]):  # the user's own random numbers go on as if nothing had been built
            torch.manual_seed(random.Random(f"{seed}/{name}").getrandbits(62))
            for key, candidate in self.candidates.items():
                module = copy.deepcopy(candidate) if isinstance(candidate, nn.Module) else _made(candidate, call)
                if not isinstance(module, nn.Module):
                    raise TypeError(f"candidate {key!r} must be a module or build one, got {type(module).__name__}")
                built[key] = module.to(like.device)
        for key, module in built.items():
            _check_candidate(name, key, module, call)
        return built


def _made(factory: Callable[..., nn.Module], call: ModuleCall) -> nn.Module:
    return factory(**open_keywords(factory, call))


def _refuse_overlap(chosen: Mapping[str, nn.Module]) -> None:
    for name, module in chosen.items():
        if RESERVED in vars(module)["_modules"]:
            raise TargetError(
                f"{name!r} already has a choice of operations, or of inputs in an earlier space; give each module to "
                "one choice of operations, in the space that chooses its input"
            )
        inside = [other for other in chosen if other.startswith(f"{name}.")]
        if inside:
            raise TargetError(f"{inside[0]!r} lies inside {name!r}, and both are chosen; narrow targets to one of them")
        if type(module).forward is nn.Module.forward:
            raise TargetError(f"{name!r} is a {type(module).__name__} and never called; choose among what lies in it")


def _check_candidate(name: str, key: str, module: nn.Module, call: ModuleCall) -> None:
    needed = output_layout(call.output)
    try:
        with torch.no_grad():
            came = output_layout(module.eval()(*call.args, **call.kwargs))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = reason_of(error)
        raise TargetError(f"candidate {key!r} cannot take the input of {name!r}: {reason}") from error
    if came != needed:
        raise TargetError(f"candidate {key!r} must return {needed} as {name!r} does, got {came}; adapt its settings")
