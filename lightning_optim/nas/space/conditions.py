"""Conditions among decisions: what there is to decide in a module counts only where the module runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from lightning_optim.nas.forward.chosen_input import ChosenInput
from lightning_optim.nas.forward.switchable import GatingForward, SwitchableForward, switchable_forwards
from lightning_optim.search.decision import Condition, Decision


def with_conditions(root: nn.Module, decisions: Sequence[Decision]) -> list[Decision]:
    """Return the decisions with conditions that the model tells, each behind those that its conditions are about.

    A decision is conditional on another one where all modules that it concerns run with some options of the other one
    alone: those of the blocks that a depth skips, of an operation that is not chosen.

    Args:
        root: The model, with its switchable forwards.
        decisions: What there is to decide, in any order.
    """
    names = {decision.name for decision in decisions}
    gates = [(forward, *gate) for forward in switchable_forwards(root) if isinstance(forward, GatingForward)
             for gate in forward.gates() if gate[1].decision in names]  # fmt: skip
    concerned: dict[str, list[dict[str, set[int]]]] = {name: [] for name in names}
    for forward in switchable_forwards(root):
        runs_with: dict[str, set[int]] = {}
        for gating, modules, condition in gates:
            if forward.owner in modules and _is_within(forward, gating):
                runs_with.setdefault(condition.decision, set(condition.options)).intersection_update(condition.options)
        for name in forward.follows & names:
            concerned[name].append(runs_with)
    known = {decision.name: decision for decision in decisions}
    return list(_ordered([
        replace(decision, conditions=(*decision.conditions, *_conditions(concerned[decision.name], known)))
        for decision in decisions
    ]))  # fmt: skip


def _is_within(forward: SwitchableForward, gating: GatingForward) -> bool:
    # Of two gates on one module, the outer one decides whether the inner one matters; so it is with a chosen input.
    if forward.owner is not gating.owner or not isinstance(forward, (GatingForward, ChosenInput)):
        return True
    order = switchable_forwards(gating.owner)
    return order.index(forward) < order.index(gating)


def _conditions(concerned: list[dict[str, set[int]]], known: dict[str, Decision]) -> Iterator[Condition]:
    for name in dict.fromkeys(name for runs_with in concerned for name in runs_with):
        if all(name in runs_with for runs_with in concerned):
            options = sorted(set[int]().union(*(runs_with[name] for runs_with in concerned)))
            if len(options) < len(known[name].options):
                yield Condition(decision=name, options=tuple(options))


def _ordered(decisions: list[Decision]) -> Iterator[Decision]:
    waiting, told = decisions, set[str]()
    while waiting:
        ready = [each for each in waiting if all(condition.decision in told for condition in each.conditions)]
        assert ready, "a module lies within another one, or the other way round"
        told.update(each.name for each in ready[:1])
        yield ready[0]
        waiting = [each for each in waiting if each is not ready[0]]
