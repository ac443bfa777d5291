"""Rebinding: optimizers and averaged copies go on with the parameters that have replaced the old ones."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery.cut import CutPlan, Cuts, Replaced, apply_cut, cut_tensor


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Refuse an optimizer whose state could not follow a cut, before anything is cut.

    What its state is made of shows once it has stepped: so a twin of the optimizer takes one step on small stand-ins. A
    twin that cannot step tells nothing; the optimizer itself is left as it is.

    Args:
        optimizer: The optimizer.
        parameters: Parameters that may be cut; those that it does not train do not matter.

    Raises:
        ShrinkError: If its state cannot be cut.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> check_optimizer(torch.optim.Adam(layer.parameters()), layer.parameters())
        >>> check_optimizer(torch.optim.LBFGS(layer.parameters()), layer.parameters())
        Traceback (most recent call last):
        lightning_optim.errors.ShrinkError: LBFGS keeps one state for all parameters, which cannot follow a cut; ...
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    mine = [parameter for parameter in parameters if id(parameter) in trained]
    if not mine:
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ShrinkError(
            f"{type(optimizer).__name__} keeps one state for all parameters, which cannot follow a cut; train with "
            "another optimizer, or mask with structure.shrink='never'"
        )
    states = [(parameter, optimizer.state[parameter]) for parameter in mine if parameter in optimizer.state]
    for old, state in (*states, *_rehearsed(optimizer, mine)):
        _check_state(type(optimizer).__name__, old, state)


def _rehearsed(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> list[tuple[nn.Parameter, Mapping[str, Any]]]:
    """State of a twin after one step, on one stand-in for each number of dimensions; empty if the twin cannot step."""
    by_dim = {parameter.dim(): parameter for parameter in parameters}
    twins = {id(old): _stand_in(old) for old in by_dim.values()}
    held = {id(old): old for group in optimizer.param_groups for old in group["params"]}
    empty = {key: nn.Parameter(old.new_zeros(1)) for key, old in held.items() if key not in twins}
    stepping = list(twins.values())

    def closure() -> float:
        for twin in stepping:
            twin.grad = torch.full_like(twin, 0.5)
        return 1.0

    devices = {twin.device for twin in stepping if twin.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        try:
            memo = {**twins, **empty, id(optimizer.state): defaultdict(dict)}
            twin = copy.deepcopy(optimizer, memo)
            twin.step(closure)
            return [(each, twin.state[each]) for each in stepping if each in twin.state]
        except Exception:  # whatever a twin lacks, the optimizer itself may have
            return []


def _stand_in(old: nn.Parameter) -> nn.Parameter:
    """A parameter like another one, of other values, and of a length of its own along each dimension."""
    shape = [min(length, place + 3) for place, length in enumerate(old.shape)]
    return nn.Parameter(torch.linspace(0.1, 1.0, torch.Size(shape).numel()).view(shape).to(old))


def check_cut(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Refuse a cut of parameters whose state in an optimizer cannot follow it, before anything is cut.

    Raises:
        ShrinkError: If a state cannot be cut.
    """
    for old in parameters:
        if old in optimizer.state:
            _check_state(type(optimizer).__name__, old, optimizer.state[old])


def rebind_optimizer(optimizer: torch.optim.Optimizer, replaced: Replaced) -> None:
    """Let an optimizer go on with the successors of its parameters.

    Parameter groups are changed in place, so that schedulers and wrappers that hold the optimizer need no care.
    Moments are cut as their parameter was; step counters and other scalars go on.

    Args:
        optimizer: Any optimizer whose state tensors are shaped as their parameter, scalar, or of length one
            where they differ from it.
        replaced: What ``apply_cut`` returns.

    Raises:
        ShrinkError: If a state cannot be cut; the optimizer is then unchanged.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> rebind_optimizer(optimizer, apply_cut(layer, {"weight": [(1, torch.tensor([0, 2]))]}))
        >>> optimizer.param_groups[0]["params"][0] is layer.weight
        True
    """
    check_cut(optimizer, [old for old, (successor, _) in replaced.items() if successor is not None])
    states = {
        old: {key: _cut_state(value, old, cuts) for key, value in optimizer.state[old].items()}
        for old, (_, cuts) in replaced.items()
        if old in optimizer.state
    }
    for group in optimizer.param_groups:
        successors = [replaced[old][0] if old in replaced else old for old in group["params"]]
        group["params"][:] = [parameter for parameter in successors if parameter is not None]
    for old, state in states.items():
        del optimizer.state[old]
        successor = replaced[old][0]
        if successor is not None:
            optimizer.state[successor] = state


def rebind_module(twin: nn.Module, plan: CutPlan) -> None:
    """Cut an averaged copy as the model was cut, and drop its gradients.

    Args:
        twin: A module of the layout that the model had before the cut.
        plan: The plan that the model was cut by.
    """
    apply_cut(twin, plan)
    twin.zero_grad(set_to_none=True)


def _check_state(optimizer: str, old: nn.Parameter, state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if isinstance(value, list | tuple | dict) and value:
            raise ShrinkError(_refusal(optimizer, key, type(value).__name__, old))
        if isinstance(value, Tensor) and not (_is_scalar(value, old) or _fits(value, old)):
            raise ShrinkError(_refusal(optimizer, key, f"a tensor of shape {tuple(value.shape)}", old))


def _cut_state(value: Any, old: nn.Parameter, cuts: Cuts) -> Any:
    if not isinstance(value, Tensor) or _is_scalar(value, old):
        return value
    return cut_tensor(value, [(dim, kept) for dim, kept in cuts if value.shape[dim] == old.shape[dim]])


def _is_scalar(value: Tensor, old: nn.Parameter) -> bool:
    return value.numel() == 1 and (old.numel() > 1 or value.dim() == 0)


def _fits(value: Tensor, old: nn.Parameter) -> bool:
    return value.dim() == old.dim() and all(
        have in (want, 1) for have, want in zip(value.shape, old.shape, strict=True)
    )


def _refusal(optimizer: str, key: str, got: str, old: nn.Parameter) -> str:
    return (
        f"{optimizer}'s state {key!r} must be shaped as its parameter {tuple(old.shape)} to be cut, got {got}; "
        "train with another optimizer, or mask with structure.shrink='never'"
    )
