"""Removal of channels, once it is proved that nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.graph.coupling import Coupling, Group, keep_channels
from lightning_optim.pruning.shrink.trial import Choice, Trial
from lightning_optim.surgery.cut import CutPlan, Replaced, apply_cut

__all__ = ["Choice", "Shrunk", "shrink_channels"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Shrunk:
    """Outcome of a removal.

    Args:
        plan: What was kept of each tensor; applied to a fresh model it gives the same layout.
        replaced: Old parameters with their successors.
        error: Largest difference between shrunk and masked output, relative to the largest output.
        refused: Names of the groups that could not be cut and stay whole, with the reason.
    """

    plan: CutPlan
    replaced: Replaced
    error: float
    refused: dict[str, str]


def shrink_channels(
    model: nn.Module,
    coupling: Coupling,
    keep: Sequence[Choice],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> Shrunk:
    """Cut a live model down to the kept channels, if the cut model equals the masked one.

    Cuts are tried on copies first (see ``Trial``). Groups that fail stay whole, the others go on. The live model
    changes in one step at the end, or not at all.

    Args:
        model: The model that was captured; cut in place, its training mode kept, gradients dropped.
        coupling: Its coupling.
        keep: Groups, each once, with the channels that stay.
        args: One batch of positional inputs, of the shapes that were captured.
        kwargs: Keyword inputs of the batch.
        tolerance: Largest relative difference that is allowed.

    Returns:
        What was done.

    Raises:
        ShrinkError: If every group that was to lose channels is refused.

    Example:
        >>> import torch
        >>> from lightning_optim.graph import capture_network
        >>> from lightning_optim.graph import couple
        >>> net, batch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.ones(2, 3),)
        >>> coupling = couple(capture_network(net, batch))
        >>> shrunk = shrink_channels(net, coupling, [(coupling.groups[0], torch.tensor([0, 3]))], batch)
        >>> net[0].out_features, net[2].in_features, shrunk.refused
        (2, 2, {})
    """
    wanted = _real(keep)
    trial = Trial(model, coupling, args, kwargs, tolerance)
    accepted, refused = trial.accept(wanted)
    if wanted and not accepted:
        raise ShrinkError(_refusal(refused))
    plan = keep_channels(accepted)
    names = {group.name: reason for group, reason in refused.items()}
    return Shrunk(plan, apply_cut(model, plan), trial.error, names)


def _real(keep: Sequence[Choice]) -> list[Choice]:
    """Choices that remove something; all are checked before anything is tried."""
    keep_channels(keep)
    return [(group, kept) for group, kept in keep if len(set(kept.tolist())) < group.size]


def _refusal(refused: Mapping[Group, str]) -> str:
    group, reason = next(iter(refused.items()))
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return f"channels of {group.name!r}{more} cannot be cut: {reason}; exclude it in targets.exclude, or mask only"
