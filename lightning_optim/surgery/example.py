"""Example inputs of a network: the arguments of one call, remembered small, for later analysis."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import reason_of
from lightning_optim.surgery.copies import eval_view
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.synthetic import Description, Filling, batch_of, describe, fillings, synthesize
from lightning_optim.surgery.torch_private import pytree, uncompiled

_ROWS = 2

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@final
class FirstCall:
    """First call of a network: its own arguments, cut to two rows of the batch.

    Two rows and not one: a dimension of size one looks like a broadcast.
    """

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._patches = Patches()
        self._is_known = False

    def __bool__(self) -> bool:
        return self._is_known

    def watch(self, network: nn.Module) -> None:
        """Remember the arguments of the next call of ``network``."""
        self._patches.undo()
        self._patches.wrap(network, "forward", self._forward)

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the arguments of a call."""
        self.args, self.kwargs = first_rows((args, kwargs))
        self._is_known = True

    def release(self) -> None:
        """Stop watching."""
        self._patches.undo()

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._is_known:
            self.note(args, kwargs)
        return original(*args, **kwargs)


@final
class ExampleInputs:
    """Example inputs of a network: synthetic ones, like those of the first call that was seen, for two rows.

    What goes into a checkpoint is no data of the user's: kinds, shapes and ranges of tensors, from which the same
    inputs are made before and after a resume. Where the network cannot be called on anything that is made so, the
    arguments of the call itself are the example, and no checkpoint holds them.
    """

    def __init__(self) -> None:
        self._inputs: Arguments = ((), {})
        self._patches = Patches()
        self._is_known = False
        self._waiting: tuple[nn.Module, Arguments] | None = None
        self._described: tuple[Description, Filling] | None = None
        self._obstacle = ""

    def __bool__(self) -> bool:
        return self._is_known

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional inputs."""
        self._try_waiting()
        return self._inputs[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword inputs."""
        self._try_waiting()
        return self._inputs[1]

    def watch(self, network: nn.Module) -> None:
        """Make the inputs for ``network`` from what is known, or else look at its next call."""
        self._patches.undo()
        if self._described is not None:
            self._inputs = synthesize(*self._described, _device_of(network))
        elif not self._is_known:
            if self._obstacle:
                warnings.warn(
                    f"a checkpoint cannot hold an example of what the network is called with ({self._obstacle}), so it "
                    "is looked at again: what is due in the first batch is done after that batch",
                    stacklevel=2,
                )
            self._patches.wrap(network, "forward", partial(self._forward, uncompiled(network)))

    def note(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the inputs from the arguments of a call of ``network``."""
        self._is_known = True
        if torch.compiler.is_compiling():  # nothing can be tried while a graph is made
            self._waiting = network, first_rows((args, kwargs))
        else:
            self._observe(network, (args, kwargs))

    def release(self) -> None:
        """Stop watching."""
        self._patches.undo()
        self._try_waiting()

    def state_dict(self) -> dict[str, Any]:
        """A description of the inputs, in primitives; why there is none, if it cannot be made."""
        self._try_waiting()
        if self._described is None:
            return {"inputs": None, "filling": None, "obstacle": self._obstacle}
        description, filling = self._described
        return {"inputs": description, "filling": asdict(filling), "obstacle": ""}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, once ``watch`` has said for which network."""
        self._obstacle, self._waiting = state["obstacle"], None
        self._is_known = state["inputs"] is not None
        self._described = (state["inputs"], Filling(**state["filling"])) if self._is_known else None

    def _forward(self, network: nn.Module, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._is_known:
            self.note(network, args, kwargs)
        return original(*args, **kwargs)

    def _try_waiting(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._observe(*waiting)

    def _observe(self, network: nn.Module, seen: Arguments) -> None:
        self._described, self._obstacle = None, ""
        with torch.inference_mode(mode=False), torch.no_grad():  # what a validation shows must serve training
            trial = _Trial(network)
            try:
                self._described = _described(trial, seen)
                self._inputs = synthesize(*self._described, trial.device)
            except TypeError as error:
                self._obstacle = reason_of(error)
                cut = first_rows(seen)
                self._inputs = cut if not trial.refusal(cut) else first_rows(seen, rows=batch_of(seen))


@final
class _Trial:
    """Calls of a copy in evaluation mode, to see what a network takes."""

    def __init__(self, network: nn.Module) -> None:
        self.device = _device_of(network)
        try:
            self._view: nn.Module | None = eval_view(network)
        except Exception as error:  # whatever the user's objects raise when they are copied
            self._view, self._reason = None, reason_of(error)

    def refusal(self, inputs: Arguments) -> str:
        """Why the network does not take some inputs; empty if it does."""
        if self._view is None:
            return self._reason
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = pytree.tree_leaves(self._view(*inputs[0], **inputs[1]))
        except Exception as error:  # whatever the user's code raises
            return reason_of(error)
        floats = [leaf for leaf in outputs if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return "the output is not a number" if any(leaf.isnan().any() for leaf in floats) else ""


def _described(trial: _Trial, seen: Arguments) -> tuple[Description, Filling]:
    """The first description and filling whose inputs a network takes: of two rows, or else of the whole batch.

    Raises:
        TypeError: If there is none.
    """
    batch = batch_of(seen)
    if not batch:
        raise TypeError("no argument of the network is a tensor with rows")
    reason = ""
    for rows in sorted({min(_ROWS, batch), batch}):
        look = partial(describe, batch=batch, rows=rows, device=trial.device.type)
        items = [look(value, name=name) for value, name in zip(seen, ("args", "kwargs"), strict=True)]
        description = {"kind": "tuple", "items": items}
        for filling in fillings(description):
            reason = trial.refusal(synthesize(description, filling, trial.device))
            if not reason:
                return description, filling
    raise TypeError(f"on made-up inputs, {reason}")


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def first_rows(inputs: Any, rows: int = _ROWS) -> Any:
    """Cut every tensor that has the batch dimension of the first one to two rows, detached copies.

    Args:
        inputs: Tensors, and whatever holds them.
        rows: How many rows are left.

    Example:
        >>> first_rows((torch.zeros(8, 3), torch.zeros(4)))[0].shape
        torch.Size([2, 3])
    """
    batch = batch_of(inputs)

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        is_batched = leaf.dim() > 0 and leaf.shape[0] == batch
        return (leaf[:rows] if is_batched else leaf).detach().clone()

    return pytree.tree_map(cut, inputs)
