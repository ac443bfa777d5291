"""Masking of channels: what it takes for a network to compute as if they were gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_optim.errors import reason_of
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.masked import masked_tensors, removed_labels, run_masked
from lightning_optim.graph.masked_norms import MaskedNorms
from lightning_optim.pruning.shrink.trial import Choice, difference, disturb
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.masked_norm import MaskedNorm, mask_norms


def plan_masking(
    model: nn.Module,
    coupling: Coupling,
    choices: Sequence[Choice],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> tuple[dict[str, MaskedNorm], dict[str, str]]:
    """Find which layers must leave masked channels out, and which groups cannot be masked at all.

    Zero weights take a channel out of every operator but those that take a statistic over channels. Layers that do
    become ``MaskedNorm``; then the masked model must compute what ``run_masked`` does, which the cut model is compared
    with too: with disturbed weights, so that no layer that starts at zero hides a difference. If it doesn't, groups
    over which a statistic is taken elsewhere are left out, and if there are none, all over which one is taken.

    Args:
        model: The model that was captured; left untouched.
        coupling: Its coupling.
        choices: Groups, each once, with the channels that stay.
        args: One batch of positional inputs, of the shapes that were captured.
        kwargs: Keyword inputs of the batch.
        tolerance: Largest relative difference that is allowed.

    Returns:
        What is left for each layer, by its name, and the name of each group that must stay whole, with the reason.

    Example:
        >>> from lightning_optim.graph import capture_network, couple
        >>> net, batch = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (torch.rand(2, 3),)
        >>> coupling = couple(capture_network(net, batch))
        >>> norms, refused = plan_masking(net, coupling, [(coupling.groups[0], torch.tensor([0, 3]))], batch)
        >>> [*norms], refused
        (['1'], {})
    """
    refused: dict[str, str] = {}
    left = list(choices)
    while True:
        found = MaskedNorms(model, coupling, left)
        if not found.competing:
            return {}, refused
        fault = _fault(model, coupling, left, found.norms, (args, dict(kwargs or {})), tolerance)
        if fault is None:
            return found.norms, refused
        for group, (operator, layer) in _to_leave(found).items():
            where = f"in {layer!r}" if layer else "in the network's own forward"
            refused[group.name] = f"{operator} {where} takes a statistic over them, which no mask leaves out: {fault}"
        left = [(group, kept) for group, kept in left if group.name not in refused]


def _to_leave(found: MaskedNorms) -> dict[Group, tuple[str, str]]:
    """Groups over whose channels a statistic is taken outside of masked norms; all groups, if there are none."""
    elsewhere = {
        group: place for group, places in found.competing.items() for place in places if place[1] not in found.norms
    }
    return elsewhere or {group: places[0] for group, places in found.competing.items()}


def _fault(
    model: nn.Module,
    coupling: Coupling,
    choices: Sequence[Choice],
    norms: Mapping[str, MaskedNorm],
    batch: tuple[tuple[Any, ...], dict[str, Any]],
    tolerance: float,
) -> str | None:
    """In what the masked model is not the one of which the channels are gone; ``None`` if it is."""
    base, (args, kwargs) = disturb(eval_copy(model)), batch
    masked = eval_copy(base)
    tensors = masked_tensors(base, coupling.propagation, removed_labels(coupling.propagation, choices))
    held = dict(masked.named_parameters(remove_duplicate=False))
    mask_norms(masked, norms)
    try:
        with torch.no_grad():
            for name in coupling.propagation.tensors.keys() & held.keys():
                held[name].copy_(tensors[name])
            outputs = masked(*args, **kwargs)
    except Exception as error:  # whatever a layer raises that is called as it was not when it was captured
        return reason_of(error)
    found = tensors_of(outputs)
    apart = difference(found, run_masked(base, coupling, choices, args, kwargs))
    return None if apart <= tolerance else f"outputs masked and without them differ by {apart:.1e}"
