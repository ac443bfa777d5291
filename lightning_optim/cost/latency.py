"""Latency: a table of times of single operators, fitted to a few measurements of the whole network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.atomic import write_atomic
from lightning_optim.checked import checked
from lightning_optim.cost.axis_widths import AxisWidths
from lightning_optim.cost.base import Cost, Subject
from lightning_optim.cost.curve import curve_through
from lightning_optim.cost.engine import Eager, Engine
from lightning_optim.cost.fit import fit_factors
from lightning_optim.cost.greedy import most_important
from lightning_optim.cost.operator_times import share_in_vectors, tabulated, vector_step
from lightning_optim.cost.operators import timed_operators
from lightning_optim.cost.prices import Channels, Prices, Product, Term, prices_from_state
from lightning_optim.errors import ArtefactError, LightningOptimError
from lightning_optim.graph.coupling import keep_channels
from lightning_optim.graph.operators import PRODUCTS, kind_of, operator_name
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.cut import apply_cut
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.torch_private import pytree

_WHOLE = ((1.0, 1.0), (0.6, 0.6), (0.3, 0.3), (1.0, 0.4), (0.4, 1.0))  # shares kept by every other pool
_BUDGETS = (0.7, 0.5, 0.4)  # shares of the time, each the budget of one more network that is timed
_CORRECTIONS = 5  # times that the curve is corrected by the network that a budget chooses, at most
_CLOSE = 0.03  # relative error of a prediction that needs no correction
_TURNS = 3  # times that each such network is timed
_LEAST = 0.1  # share of its channels that each pool keeps under these budgets


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Cost):
    """Latency: CPU time of one forward pass in evaluation mode, on one thread of this machine.

    Each kind of operator is timed on its own at a few channel counts, in PyTorch; between them the table is
    interpolated. The whole network is then timed by ``engine`` at five sizes and at up to three that a budget would
    choose. One factor for products and convolutions, one for all else and one constant fit the table to those times:
    the factor for the rest is zero where an engine fuses the rest into the products. A rising curve through the same
    times corrects what the sum of the parts gets wrong. At last the network that the budget would choose for the
    schedule's end is timed and corrects the curve, up to five times, until the network chosen takes what is predicted.
    With sharded weights this last step is left out.

    An engine that works in blocks of channels may take as long for 17 channels as for 32. No table of PyTorch's
    operators shows that: set ``Channel.multiple`` to 16.

    The table is measured once, at the first pruning step; a checkpoint from then on holds it. Two runs measure two
    tables, unless a file holds it. With large batches in PyTorch, memory that the C library hands back between calls
    makes single networks up to a quarter slower than the table says.

    Args:
        engine: What runs the whole network; PyTorch by default.
        batch_size: Samples in the pass that is timed, at least 1.
        points: Channel counts at which each operator is timed, for each group that it depends on; at least 2.
        table: JSON file of an earlier measurement of the same network on the same machine, taken instead of a new one,
            with the corrections for the budget of that time; written if it is not there. ``None`` measures.

    Raises:
        ValueError: If a value is out of range.

    Example:
        At three sizes of a network, the convolutions timed one by one take 8, 4 and 2 milliseconds together, all else
        takes 1, 0.75 and 0.5, and the whole network takes 8.2, 4.2 and 2.2: the engine does all else within the
        convolutions. The fit finds it, and 0.2 milliseconds that each call takes.

        >>> from lightning_optim.cost.fit import fit_factors
        >>> products, rest, constant = fit_factors([[8, 1, 1], [4, 0.75, 1], [2, 0.5, 1]], [8.2, 4.2, 2.2])
        >>> products, rest, constant
        (1.0, 0.0, 0.2)

        At another size the table has 6 milliseconds of convolutions and 0.9 of all else.

        >>> products * 6 + rest * 0.9 + constant
        6.2
    """

    engine: Engine = field(default_factory=Eager)
    batch_size: int = 1
    points: int = 4
    table: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.points < 2:
            raise ValueError(
                f"batch_size must be at least 1 and points at least 2, got {self.batch_size} and {self.points}"
            )

    @override
    def prices(self, subject: Subject) -> Prices:
        axis_widths = AxisWidths(subject.coupling, subject.pools)
        if self.table is not None and Path(self.table).is_file():
            return _read(Path(self.table), axis_widths)
        prices = self._tabulate(subject, axis_widths)
        if self.table is not None:
            write_atomic(self.table, json.dumps(prices.state_dict()).encode())
        return prices

    @override
    def measure(self, network: nn.Module, inputs: Inputs) -> float:
        """CPU seconds of one call on ``batch_size`` samples, which are the rows of ``inputs``, repeated or cut."""
        args, kwargs = _of_batch(self.batch_size, inputs.args, inputs.kwargs)
        with evaluating(network):
            return self.engine(network, args, kwargs)

    def _tabulate(self, subject: Subject, axis_widths: AxisWidths) -> Prices:
        rows = _num_rows((subject.args, subject.kwargs))
        known: dict[str, float] = {}
        kinds: tuple[list[Term], list[Term]] = ([], [])
        for operator in timed_operators(subject.coupling, axis_widths, self.batch_size / rows):
            is_product = kind_of(operator_name(operator.node.target)) in PRODUCTS
            kinds[is_product].append(tabulated(operator, axis_widths.sizes, self.points, known))
        tables = [Prices("seconds", axis_widths.pools, tuple(terms)) for terms in kinds]
        inputs = _of_batch(self.batch_size, subject.args, subject.kwargs)
        sizes = [_shares_of(axis_widths.sizes, shares) for shares in _WHOLE]
        measured = [self._whole(subject, channels, inputs) for channels in sizes]
        likely = [channels for channels in _likely(_fitted(tables, sizes, measured)) if channels not in sizes]
        sizes += likely
        measured += [self._whole(subject, channels, inputs) for channels in likely]
        prices = _fitted(tables, sizes, measured)
        known_times = [(prices(at), time) for at, time in zip(sizes, measured, strict=True) if time is not None]
        prices = replace(prices, curve=curve_through(known_times))
        return prices if subject.choose is None else self._held_to_choice(prices, subject, subject.choose, inputs)

    def _held_to_choice(
        self, prices: Prices, subject: Subject, choose: Callable[[Prices], Channels | None], inputs: Any
    ) -> Prices:
        """Choose by these prices, time what was chosen and correct them by it, until both agree.

        Networks of one predicted time differ in what they really take; what the correction rests on is the one that a
        budget leads to (as in NetAdapt, Yang et al., 2018, which measures every candidate).
        """
        for _ in range(_CORRECTIONS):
            channels = choose(prices)
            times = [] if channels is None else [self._whole(subject, channels, inputs) for _ in range(_TURNS)]
            known = sorted(time for time in times if time is not None)
            if channels is None or not known:
                break
            time, predicted = known[len(known) // 2], prices(channels)
            prices = replace(prices, curve=prices.curve.through(prices.total(channels), time))
            if abs(time / predicted - 1.0) <= _CLOSE:
                break
        return prices

    def _whole(self, subject: Subject, channels: Channels, inputs: Any) -> float | None:
        """CPU seconds of the network at these channel counts; ``None`` if it cannot be cut to them."""
        small = eval_copy(subject.network)
        try:
            apply_cut(
                small, keep_channels((group, torch.arange(channels[pool])) for pool, group in subject.pools.items())
            )
            with torch.no_grad():
                small(*inputs[0], **inputs[1])
        except (LightningOptimError, RuntimeError):  # code that derives a size from another has its own errors
            return None
        return self.engine(small, *inputs)


def _read(path: Path, axis_widths: AxisWidths) -> Prices:
    try:
        prices = prices_from_state(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is no latency table ({error}); remove it to measure anew") from error
    sizes = prices.sizes
    if sizes.keys() != axis_widths.sizes.keys() or any(size > sizes[pool] for pool, size in axis_widths.sizes.items()):
        raise ArtefactError(f"{path} is the latency table of another network; remove it, or name another file")
    return replace(prices, pools=axis_widths.pools)  # the table holds networks with fewer channels too


def _shares_of(sizes: Mapping[str, int], shares: Sequence[float]) -> dict[str, int]:
    return {
        pool: share_in_vectors(size, shares[place % len(shares)]) for place, (pool, size) in enumerate(sizes.items())
    }


def _likely(prices: Prices) -> list[dict[str, int]]:
    """Channels that budgets on these prices would leave if all channels were equally important."""
    allowed = {pool: _allowed_counts(size) for pool, size in prices.sizes.items()}
    importance = {
        name: [-math.inf, *(pool.uses * math.log(number / pool.size) for number in range(1, pool.size + 1))]
        for name, pool in prices.pools.items()
    }
    chosen: list[dict[str, int]] = []
    for share in _BUDGETS:
        channels = most_important(importance, allowed, prices, share * prices.full)
        chosen += [channels] if channels not in chosen else []
    return chosen


def _allowed_counts(size: int) -> list[int]:
    step = vector_step(size)
    return [*range(math.ceil(_LEAST * size / step) * step, size, step), size]


def _fitted(tables: Sequence[Prices], sizes: Sequence[Channels], measured: Sequence[float | None]) -> Prices:
    """One table: the two tables, each times its factor, and what a call takes at any size."""
    *factors, constant = fit_factors([[*(table(channels) for table in tables), 1.0] for channels in sizes], measured)
    scaled = [term.times(factor) for table, factor in zip(tables, factors, strict=True) for term in table.terms]
    return replace(tables[0], terms=(*scaled, Product("calls", constant, ())))


def _num_rows(inputs: Any) -> int:
    """Length of the first tensor of a call's inputs; one sample where they hold none."""
    lengths = (len(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim())
    return next(lengths, 1)


def _of_batch(batch: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Positional and keyword inputs of ``batch`` samples."""
    rows = _num_rows((args, kwargs))
    return pytree.tree_map(lambda leaf: _resized(leaf, rows, batch), (args, dict(kwargs)))


def _resized(leaf: Any, rows: int, batch: int) -> Any:
    """The tensor with another number of rows, which are its own, repeated or cut."""
    if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != rows:
        return leaf
    return leaf[torch.arange(batch) % rows]
