"""Dropout of a live network: hooks that drop from outputs, and rates of modules that are there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import nn

from lightning_optim.errors import TapError, TargetError
from lightning_optim.regularization.dropout.base import AddedDropout
from lightning_optim.regularization.dropout_settings import DropoutSettings, Dropped
from lightning_optim.regularization.step_draws import StepDraws
from lightning_optim.surgery.containers import map_tensors, tensors_of
from lightning_optim.surgery.generator_state import seeded
from lightning_optim.surgery.tap import OutputChanges, Surroundings
from lightning_optim.surgery.torch_private import is_call_compiled, is_compiled_wrapper


@final
class LiveDropout:
    """Dropout of a live network, in training steps alone.

    Args:
        settings: What is dropped where.
        draws: Seeds of what is drawn; nothing is dropped outside the steps that they know of.

    Example:
        >>> from lightning_optim.regularization import PresentDropout
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> live = LiveDropout(DropoutSettings(PresentDropout(), 0.1, None), StepDraws(0))
        >>> live.attach(net, torch.device("cpu"))
        >>> live.set_rates(progress=0.0)
        {'present_dropout': 0.1}
        >>> net[1].p
        0.1
        >>> live.remove()
        >>> net[1].p
        0.5
    """

    def __init__(self, settings: DropoutSettings, draws: StepDraws) -> None:
        self._settings, self._draws = settings, draws
        self._changes, self._surroundings = OutputChanges(self._drop), Surroundings(self._seeded)
        self._groups: dict[str, list[Dropped]] = {}
        self._added: dict[str, tuple[str, Dropped]] = {}
        self._rates: dict[str, float] = {}
        self._uncalled: set[str] = set()
        self._device = torch.device("cpu")

    def attach(self, root: nn.Module, device: torch.device, *, is_compiled: bool = False) -> None:
        """Find the modules and set hooks; a second call does nothing.

        Args:
            root: The LightningModule.
            device: Where it draws random numbers.
            is_compiled: Whether it was compiled as a whole.

        Raises:
            TargetError: If targets match nothing to drop from, or a module that ``torch.compile`` compiles.
        """
        if self._groups:
            return
        found = self._settings.select(root)
        _check_uncompiled(root, [each for group in found.values() for each in group], is_compiled=is_compiled)
        self._groups, self._device = found, device
        named = {f"{key}/{each.path}": (key, each) for key, group in found.items() for each in group}
        self._added = {name: (key, each) for name, (key, each) in named.items() if each.attribute is None}
        self._changes.attach({name: each.module for name, (_, each) in self._added.items()})
        present = {name: each.module for name, (_, each) in named.items() if each.attribute is not None}
        self._surroundings.attach(present)
        self._uncalled = set(self._added)

    def set_rates(self, progress: float) -> dict[str, float]:
        """Let what follows be dropped at the rates of now, and return the probability of each method.

        Args:
            progress: How far through the window training is.
        """
        probabilities = {key: self._settings.probability(key, progress) for key in self._groups}
        for key, group in self._groups.items():
            rates = self._settings.methods[key].rates(probabilities[key], [each.own for each in group])
            for each, rate in zip(group, rates, strict=True):
                self._rates[f"{key}/{each.path}"] = rate
                if each.attribute is not None:
                    setattr(each.module, each.attribute, rate)
        return probabilities

    def check_called(self) -> None:
        """Refuse modules that have put nothing out in the steps so far.

        Raises:
            TapError: Naming the first of them.
        """
        if self._uncalled:
            path = sorted(self._uncalled)[0].partition("/")[2]
            raise TapError(
                f"{path!r} was not called in the training step, so that it has no output to drop: is it a container, "
                "or skipped? Name a module that is called in each step"
            )

    def remove(self) -> None:
        """Take the hooks off and give each module its own rate back; a second call does nothing."""
        self._changes.remove()
        self._surroundings.remove()
        for each in (each for group in self._groups.values() for each in group):
            if each.attribute is not None:
                setattr(each.module, each.attribute, each.own)
        self._groups, self._added, self._rates, self._uncalled = {}, {}, {}, set()

    def _drop(self, name: str, output: Any) -> Any:
        key, dropped = self._added[name]
        seed = self._draws.seed(name)
        if seed is None:
            return output
        self._uncalled.discard(name)
        tensors = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
        if len(tensors) != 1:
            raise TapError(
                f"{dropped.path!r} has no output to drop: it returns {len(tensors)} tensors in floating point; name a "
                "module that returns one"
            )
        rate, method = self._rates[name], self._settings.methods[key]
        if rate == 0.0 or not dropped.module.training:
            return output
        assert isinstance(method, AddedDropout)
        changed = method(tensors[0], rate, torch.Generator(tensors[0].device).manual_seed(seed))
        return map_tensors(lambda tensor: changed if tensor is tensors[0] else tensor, output)

    def _seeded(self, name: str) -> AbstractContextManager[None] | None:
        seed = self._draws.seed(name)
        return None if seed is None else seeded(seed, self._device)


def _check_uncompiled(root: nn.Module, dropped: list[Dropped], *, is_compiled: bool) -> None:
    """Refuse modules that run in compiled code, which does not see what changes from step to step."""
    compiled = [each for each in root.modules() if is_compiled_wrapper(each) or is_call_compiled(each)]
    inside = {inner for each in compiled for inner in each.modules()}
    path = next((each.path for each in dropped if is_compiled or each.module in inside), None)
    if path is not None:
        raise TargetError(
            f"what is dropped from {path!r} changes from step to step, which code of torch.compile cannot follow: "
            "train it uncompiled"
        )
