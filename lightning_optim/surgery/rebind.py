"""Rebinding: optimizers and averaged copies go on with the parameters that have replaced the old ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery.cut import CutPlan, Cuts, Replaced, apply_cut, cut_tensor


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
    states = {
        old: {key: _cut_state(key, value, old, cuts) for key, value in optimizer.state[old].items()}
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


def _cut_state(key: str, value: Any, old: nn.Parameter, cuts: Cuts) -> Any:
    if not isinstance(value, Tensor):
        if isinstance(value, list | tuple | dict) and value:
            raise ShrinkError(_refusal(key, type(value).__name__, old))
        return value
    if value.numel() == 1 and old.numel() > 1:
        return value
    fits = value.dim() == old.dim() and all(
        have in (want, 1) for have, want in zip(value.shape, old.shape, strict=True)
    )
    if not fits:
        raise ShrinkError(_refusal(key, f"a tensor of shape {tuple(value.shape)}", old))
    return cut_tensor(value, [(dim, kept) for dim, kept in cuts if value.shape[dim] == old.shape[dim]])


def _refusal(key: str, got: str, old: nn.Parameter) -> str:
    return (
        f"optimizer state {key!r} must be shaped as its parameter {tuple(old.shape)} to be cut, got {got}; "
        "shrink after training, or train with another optimizer"
    )
