"""Removal of residual branches from a model, once it is proved that nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_optim.errors import reason_of
from lightning_optim.graph.branches import Branch
from lightning_optim.pruning.shrink.trial import difference, disturb
from lightning_optim.surgery.bypass import tells_its_shape
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.cut import CutPlan, apply_cut
from lightning_optim.surgery.select import submodule

_Batch = tuple[tuple[Any, ...], dict[str, Any]]


def plan_bypass(
    model: nn.Module,
    branches: Sequence[Branch],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> tuple[CutPlan, dict[str, str]]:
    """Find the modules that serve the branches alone, and prove that zeros may stand in for them.

    A model without them must compute what it computes with all parameters of the branches at zero: with its weights,
    and with disturbed ones. If all branches together do not pass, they are tried one after another.

    Args:
        model: The model that the branches were found in; left untouched.
        branches: Branches that are to go.
        args: One batch of positional inputs, of the shapes that were captured.
        kwargs: Keyword inputs of the batch.
        tolerance: Largest difference that is allowed, relative to the largest output.

    Returns:
        The plan that takes the modules out, and the name of each branch that must stay, with the reason.

    Example:
        >>> from lightning_optim.graph.branches import residual_branches
        >>> from lightning_optim.graph import capture_network
        >>> from lightning_optim.graph import couple
        >>> net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
        >>> batch = (torch.ones(2, 3, 4),)
        >>> plan, refused = plan_bypass(net, residual_branches(couple(capture_network(net, batch))), batch)
        >>> sorted(plan), refused
        (['dropout', 'dropout1', 'dropout2', 'linear1', 'linear2', 'self_attn'], {})
    """
    batch = (args, dict(kwargs or {}))
    shaped = _keeping_shape(model, {name for branch in branches for name in branch.modules}, batch)
    parts = {branch: _outermost(model, branch, shaped) for branch in branches}
    bases = (disturb(eval_copy(model)), model)
    wanted = [branch for branch in branches if parts[branch]]
    reason = "none of its modules tells the shape of what it returns"
    refused = {branch.name: reason for branch in branches if not parts[branch]}
    if _objection(bases, wanted, parts, batch, tolerance) is None:
        return _plan(wanted, parts), refused
    accepted: list[Branch] = []
    for branch in wanted:
        objection = _objection(bases, [*accepted, branch], parts, batch, tolerance)
        if objection is None:
            accepted.append(branch)
        else:
            refused[branch.name] = objection
    return _plan(accepted, parts), refused


def _plan(branches: Sequence[Branch], parts: Mapping[Branch, list[str]]) -> CutPlan:
    names = {name for branch in branches for name in parts[branch]}
    # A branch may lie in a module that serves another one alone.
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return {name: [(0, torch.empty(0, dtype=torch.long))] for name in sorted(outer)}


def _keeping_shape(model: nn.Module, names: set[str], batch: _Batch) -> set[str]:
    """Which modules return one tensor of the shape of their first input, seen in one forward pass."""
    found: set[str] = set()
    shadow = eval_copy(model)

    def note(name: str, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        first = next((value for value in (*inputs, *kwargs.values()) if isinstance(value, Tensor)), None)
        if isinstance(output, Tensor) and first is not None and output.shape == first.shape:
            found.add(name)

    for name in names:
        submodule(shadow, name).register_forward_hook(
            lambda module, inputs, kwargs, output, name=name: note(name, inputs, kwargs, output), with_kwargs=True
        )
    _run(shadow, batch)
    return found


def _outermost(model: nn.Module, branch: Branch, keeping_shape: set[str]) -> list[str]:
    """The largest modules that serve a branch alone and that zeros can stand in for."""
    chosen: list[str] = []
    for name in sorted(branch.modules, key=lambda name: name.count(".")):
        is_covered = any(name.startswith(f"{outer}.") for outer in chosen)
        if not is_covered and (name in keeping_shape or tells_its_shape(submodule(model, name))):
            chosen.append(name)
    return chosen


def _objection(
    bases: Sequence[nn.Module],
    branches: Sequence[Branch],
    parts: Mapping[Branch, list[str]],
    batch: _Batch,
    tolerance: float,
) -> str | None:
    """Why these branches cannot be taken out together; ``None`` if they can."""
    for base in bases:
        masked, cut = eval_copy(base), eval_copy(base)
        with torch.no_grad():
            for name in {name for branch in branches for name in branch.parameters}:
                masked.get_parameter(name).zero_()
        try:
            apply_cut(cut, _plan(branches, parts))
            found = difference(_run(cut, batch), _run(masked, batch))
            if _trains(masked, batch):
                _run(cut.train(), batch)
        except Exception as error:  # whatever a model raises that needs what was taken out
            return reason_of(error)
        if not found <= tolerance:
            return f"outputs without it and with it masked differ by {found:.1e}, more than {tolerance:.0e}"
    return None


def _trains(model: nn.Module, batch: _Batch) -> bool:
    """Whether these inputs are enough for a forward pass in training mode."""
    try:
        _run(model.train(), batch)
    except Exception:
        return False
    return True


def _run(model: nn.Module, batch: _Batch) -> list[Tensor]:
    args, kwargs = batch
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = model(*args, **kwargs)
    return tensors_of(outputs)
