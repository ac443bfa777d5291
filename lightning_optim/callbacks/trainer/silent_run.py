"""Silent run: a training step runs once more, and what it logs and counts is not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule
from torchmetrics import Metric, MetricCollection

from lightning_optim.callbacks.trainer.lightning_private import own_attributes
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.module_state import ModuleState
from lightning_optim.surgery.patch import Patches

_METHODS = ("forward", "update", "compute", "reset")


@final
class SilentRun:
    """Silent run of a training step: ``self.log``, ``self.print`` and the module's metrics see nothing of it.

    An empty copy stands in for each metric of the module, or collection of them, while the step runs: what a metric
    returns is that of this run alone, and what it has counted before stays. Numbers and lists in attributes of modules
    are put back. Metrics that are no submodules, and loggers that the step calls by itself, cannot be found.

    Example:
        >>> from torchmetrics import SumMetric
        >>> module, silence = LightningModule(), SilentRun()
        >>> module.total = SumMetric()
        >>> module.total.update(1)
        >>> with silence.of(module):
        ...     module.total(5)
        tensor(5.)
        >>> module.total.compute()
        tensor(1.)
    """

    def __init__(self) -> None:
        self._copies: dict[str, Metric | MetricCollection] = {}
        self._spared = own_attributes()

    @contextmanager
    def of(self, pl_module: LightningModule, *, puts_back: bool = True) -> Iterator[None]:
        """Run silently what is inside.

        Args:
            pl_module: The module.
            puts_back: Whether numbers and lists in attributes are put back: not where the network runs for good.
        """
        patches = Patches()
        state = ModuleState(pl_module, self._spared, tensors=False) if puts_back else None
        copies = [(metric, self._empty_copy(name, metric)) for name, metric in _metrics_of(pl_module).items()]
        try:
            for method in ("log", "log_dict", "print"):
                patches.wrap(pl_module, method, _skip)
            for metric, stand_in in copies:
                for method in _METHODS:
                    patches.wrap(metric, method, partial(_call_instead, getattr(stand_in, method)))
            yield
        finally:
            patches.undo()
            if state is not None:
                state.put_back()

    def release(self) -> None:
        """Let go of the copies."""
        self._copies = {}

    def _empty_copy(self, name: str, metric: Metric | MetricCollection) -> Metric | MetricCollection:
        if type(self._copies.get(name)) is not type(metric):
            self._copies[name] = copy_model(metric)
        stand_in = self._copies[name]
        stand_in.reset()
        return stand_in


def _metrics_of(pl_module: LightningModule) -> dict[str, Metric | MetricCollection]:
    return {
        name: module for name, module in pl_module.named_modules() if isinstance(module, (Metric, MetricCollection))
    }


def _skip(_: Callable[..., Any], *__: Any, **___: Any) -> None: ...


def _call_instead(stand_in: Callable[..., Any], _: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return stand_in(*args, **kwargs)
