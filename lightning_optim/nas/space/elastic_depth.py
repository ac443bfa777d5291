"""Elastic depth: a sequence of blocks runs its first blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.choice import RESERVED, output_layout
from lightning_optim.nas.forward.skipped import SkippedForward
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.removal import try_removal
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.pass_through import pass_through_of
from lightning_optim.surgery.select import Targets

Blocks = Mapping[str, nn.Module]
"""Blocks of one sequence by name, in order."""


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticDepth(SearchDimension):
    """Elastic depth: a sequence runs its first ``d`` blocks (Cai et al., 2020; arXiv:1908.09791, section 3.3).

    The blocks behind hand their input on, so that a skipped block must return what it is given, shape by shape. What
    there is to decide inside a skipped block does not count as another architecture. The extracted network holds no
    skipped block: its container is shorter, or, where the code of the model counts the blocks, a module without
    parameters that passes its input through stands in the place. Use it on the repeated blocks of a stage or of an
    encoder.

    Args:
        targets: Containers of blocks, ``nn.Sequential`` or ``nn.ModuleList``; or the blocks themselves.
        level: What the targets are: each ``"container"`` is a decision; of ``"block"`` targets, those of one
            parent, in their order, are one, named after the first of them. What lies inside a block is none.
        depths: Numbers of blocks to choose from, ascending, each at least 0; a sequence takes those that are smaller
            than its own, and its own. ``None`` is every number from 1 on.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> ElasticDepth(targets=Targets(include=["net.layers"]), depths=[2, 4, 8]).numbers(6)
        (2, 4, 6)
    """

    adds_modules: ClassVar[bool] = False

    targets: Targets
    level: Literal["container", "block"] = "container"
    depths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.level not in ("container", "block"):
            raise ValueError(f"level must be 'container' or 'block', got {self.level!r}")
        if self.depths is not None:
            object.__setattr__(self, "depths", tuple(self.depths))
            rises = all(low < high for low, high in itertools.pairwise(self.depths))
            if not self.depths or not rises or self.depths[0] < 0:
                raise ValueError(f"depths must ascend from at least 0, got {list(self.depths)}")

    def numbers(self, length: int) -> tuple[int, ...]:
        """Numbers of blocks that a sequence of ``length`` blocks may run, the last of them all."""
        depths = range(1, length) if self.depths is None else self.depths
        return (*(depth for depth in depths if depth < length), length)

    @override
    def attach(self, site: Site) -> list[Decision]:
        sequences = self._sequences(site)
        varying = {name: blocks for name, blocks in sequences.items() if len(self.numbers(len(blocks))) > 1}
        if not varying:
            found = ", ".join(f"{name!r} with {len(blocks)}" for name, blocks in sequences.items())
            raise TargetError(f"no sequence has more blocks than the depths ask for: {found}; give smaller depths")
        planned = {name: self._plan(name, blocks, site) for name, blocks in varying.items()}
        for forwards in planned.values():
            for forward in forwards:
                forward.attach()
            try_removal(site, forwards)
        return [self._decision(name, len(blocks)) for name, blocks in varying.items()]

    def _sequences(self, site: Site) -> dict[str, Blocks]:
        if self.level == "container":
            containers = self.targets.select(site.root, (nn.Sequential, nn.ModuleList))
            return {name: _blocks_of(name, container) for name, container in containers.items()}
        matches = self.targets.select(site.root, (nn.Module,))
        chosen = {
            name: module for name, module in matches.items() if not any(_is_inside(name, each) for each in matches)
        }
        parents = [name.rpartition(".")[0] for name in chosen]
        by_parent = {parent: {name: module for name, module in chosen.items() if name.rpartition(".")[0] == parent}
                     for parent in dict.fromkeys(parents)}  # fmt: skip
        return {next(iter(blocks)): blocks for blocks in by_parent.values()}

    def _plan(self, name: str, blocks: Blocks, site: Site) -> list[SkippedForward]:
        numbers = self.numbers(len(blocks))
        calls = site.calls(list(blocks)[numbers[0] :])
        forwards = []
        for position, (block, module) in enumerate(blocks.items()):
            if position < numbers[0]:
                continue
            pass_through = pass_through_of(calls[block])
            if pass_through is None:
                given, returned = output_layout((calls[block].args, calls[block].kwargs)), calls[block].output
                raise TargetError(
                    f"{block!r} cannot be skipped: it returns {output_layout(returned)} for {given[1:]}, and a skipped "
                    f"block hands its first tensor on; give {name!r} depths of more than {position} blocks, or leave "
                    "it out of targets"
                )
            has_block = [number > position for number in numbers]
            forwards.append(SkippedForward(module, f"{name}:depth", has_block, pass_through))
        return forwards

    def _decision(self, name: str, length: int) -> Decision:
        numbers = self.numbers(length)
        return Decision(name=f"{name}:depth", options=tuple(map(str, numbers)), default=len(numbers) - 1)


def _is_inside(name: str, outer: str) -> bool:
    return name.startswith(f"{outer}.")


def _blocks_of(name: str, container: nn.Module) -> Blocks:
    blocks = {f"{name}.{key}": child for key, child in vars(container)["_modules"].items() if key != RESERVED}
    if len(set(blocks.values())) < len(blocks):
        raise TargetError(f"a block stands twice in {name!r} and cannot be skipped in one place alone; leave it out")
    return blocks
