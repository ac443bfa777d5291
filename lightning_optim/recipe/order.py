"""Order of stages: which kind may follow which, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from lightning_optim.errors import OrderError

Kind = Literal["train", "search", "prune", "distil", "finetune", "qat", "export"]

_TRAINS_FLOATS = (
    "it would train float weights and undo the low-bit simulation: use a qat stage with these callbacks in it"
)
_NEEDS_ALL = "the supernet is built over the full-size network: search first"

# A stage -> why it cannot be the first.
_FORBIDDEN_FIRST: dict[str, str] = {
    "export": "there is no trained model yet",
    "finetune": "there is nothing yet that it could go on to train: use a train stage, or put one before it",
}

# (an earlier stage, any later stage) -> why that makes no sense.
_FORBIDDEN: dict[tuple[str, str], str] = {
    ("qat", "train"): _TRAINS_FLOATS,
    ("qat", "finetune"): _TRAINS_FLOATS,
    ("qat", "distil"): _TRAINS_FLOATS,
    ("qat", "prune"): "the ranges of the quantizers belong to the channels that pruning removes: prune first",
    ("qat", "search"): _NEEDS_ALL,
    ("prune", "search"): _NEEDS_ALL,
    ("prune", "train"): "training from the start would undo the fine-tuning: use a finetune stage",
    ("distil", "train"): "training from the start would undo the distillation: use a finetune stage",
}

# (a stage, the very next stage) -> why that makes no sense.
_FORBIDDEN_NEXT: dict[tuple[str, str], str] = {
    ("search", "qat"): "the picked network has inherited weights: train, finetune or distil it first",
    ("search", "export"): "the picked network has inherited weights: train, finetune or distil it first",
}


def check_order(kinds: Sequence[str]) -> None:
    """Refuse a list of stages that makes no sense.

    Raises:
        OrderError: If it makes no sense; the message names the two stages and the reason.

    Example:
        >>> check_order(["train", "prune", "qat", "export"])
        >>> check_order(["train", "qat", "prune"])
        Traceback (most recent call last):
        lightning_optim.errors.OrderError: 'prune' cannot come after 'qat': the ranges of the quantizers belong to the
        channels that pruning removes: prune first
    """
    if not kinds:
        raise OrderError("a recipe needs at least one stage, got none")
    for kind in kinds:
        if kind not in get_args(Kind):
            raise OrderError(f"{kind!r} is no kind of stage; there are {', '.join(get_args(Kind))}")
    if kinds[0] in _FORBIDDEN_FIRST:
        raise OrderError(f"{kinds[0]!r} cannot come first: {_FORBIDDEN_FIRST[kinds[0]]}")
    for place, later in enumerate(kinds):
        for earlier in kinds[:place]:
            if earlier == "export":
                raise OrderError(f"{later!r} cannot come after 'export': what is deployed is final")
            reason = _FORBIDDEN.get((earlier, later))
            if reason:
                raise OrderError(f"{later!r} cannot come after {earlier!r}: {reason}")
        reason = _FORBIDDEN_NEXT.get((kinds[place - 1], later)) if place else None
        if reason:
            raise OrderError(f"{later!r} cannot come right after {kinds[place - 1]!r}: {reason}")
