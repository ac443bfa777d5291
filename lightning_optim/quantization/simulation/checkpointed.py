"""Checkpointed passes: what of a forward pass runs once more in the backward is simulated as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, final

from lightning_optim.quantization.simulation.backend import Backend
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from lightning_optim.quantization.simulation.module_path import ModulePath
from lightning_optim.quantization.simulation.operator_names import OperatorNames
from lightning_optim.quantization.simulation.placement import Placement
from lightning_optim.quantization.simulation.plan import Record
from lightning_optim.quantization.simulation.tensor_state import SavedStates, TensorStates
from lightning_optim.surgery.torch_private import checkpoints_followed


class Place(Protocol):
    """Makes the placement of a pass."""

    def __call__(self, backend: Backend, record: Record | None, states: TensorStates | None) -> Placement:
        """Return the placement, to be entered."""


@final
class CheckpointedPass:
    """Forward pass under a placement, parts of which may be checkpointed (Chen et al., 2016; arXiv:1604.06174).

    A part that runs once more in the backward finds all as it was when it ran first: the names of its operators, the
    states of the tensors that it takes in, ranges and first values. It takes note of nothing.

    Args:
        modules: Identity of a module -> its names.
        names: Names of the operators.
        place: Makes the placement.
        learned: What quantizers learn; a part whose inputs come back detached has its own graph, and reads it anew.
    """

    def __init__(
        self, modules: Mapping[int, Sequence[str]], names: OperatorNames, place: Place, learned: LearnedValues
    ) -> None:
        self._modules, self._names, self._place, self._learned = modules, names, place, learned

    @contextmanager
    def entered(
        self, backend: Backend, record: Record | None = None, states: TensorStates | None = None
    ) -> Iterator[Placement]:
        """Let ``backend`` carry out the placement for what runs inside."""
        with (
            ModulePath(self._modules, self._names),
            self._place(backend, record, states) as placement,
            checkpoints_followed(partial(self._repeat, backend, placement)),
        ):
            yield placement

    def _repeat(
        self,
        backend: Backend,
        placement: Placement,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        is_detached: bool,  # torch's
    ) -> Callable[..., Any]:
        """Return what runs in the backward in place of a part that is about to run for the first time."""
        point, saved = self._names.point(), SavedStates(placement.states, args, is_detached=is_detached)

        def repeated(*again: Any, **kwargs: Any) -> Any:
            values = self._learned.read_once_more() if is_detached else nullcontext()
            entered = self.entered(backend.repeated(), states=saved.restored(again))
            with values, self._names.at(point), entered:
                return function(*again, **kwargs)

        return repeated
