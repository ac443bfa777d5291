"""How a training step calls the network: as a whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_optim.callbacks.trainer.lightning_private import compiler_of
from lightning_optim.errors import TargetError
from lightning_optim.surgery.compilation import find_compilation
from lightning_optim.surgery.parts import PartsPlan, StepRecorder, part_names, plan_parts
from lightning_optim.surgery.passes import is_repeating
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import is_compiled_wrapper


@final
class NetworkObserver:
    """Observer of the first training steps: whether a step calls the network's own ``forward``, or parts of it.

    A network that is compiled is taken to be called as a whole. Else the first step shows who is called. If these are
    parts, the second one shows too which of their outputs the step itself reads. Steps that call nothing, such as those
    that return None, are passed over.

    Attributes:
        ran: Names of the modules that ran in the first step; ``None`` before, and where modules are compiled.
        parts: Names of the parts that the first step called; empty if the network is called as a whole.
        plan: How the parts are called; ``None`` if the network is called as a whole.
    """

    def __init__(self) -> None:
        self._patches = Patches()
        self._network: nn.Module | None = None
        self._recorder: StepRecorder | None = None
        self._hides_modules = False
        self._on_plan: Callable[[tuple[Tensor, ...]], None] | None = None
        self.is_known = self.is_in_parts = False
        self.ran: frozenset[str] | None = None
        self.parts: tuple[str, ...] = ()
        self.plan: PartsPlan | None = None

    def watch(
        self,
        pl_module: LightningModule,
        network: nn.Module,
        on_plan: Callable[[tuple[Tensor, ...]], None] | None = None,
    ) -> None:
        """Watch the next training steps, until it is known how they call the network.

        Args:
            pl_module: The module whose ``training_step`` runs.
            network: The network, which lies in it.
            on_plan: Is called with the inputs of the parts once their plan is drawn; without it none is drawn.
        """
        self.release()
        if find_compilation(pl_module, network, compiler_of(pl_module)) is not None:
            self.is_known = True  # what is compiled as a whole is called as a whole, and hooks would compile it anew
            return
        self._network, self._on_plan = network, on_plan
        self._hides_modules = any(is_compiled_wrapper(module) for module in network.modules())
        self._patches.wrap(pl_module, "training_step", self._training_step)
        self._patches.wrap(network, "forward", self._forward)

    def release(self) -> None:
        """Stop watching; what is known stays known."""
        self._patches.undo()
        self._network = self._recorder = None

    def check_reached(self, layers: Mapping[str, nn.Module], what: str) -> None:
        """Refuse layers of which none ran in the first step, once it is known.

        Args:
            layers: The layers, by plain name in the network. A layer whose weight has a gradient was used.
            what: What was to happen to them, for the message.

        Raises:
            TargetError: If none was reached.
        """
        if self.ran is None or self.ran & layers.keys() or any(map(_has_gradient, layers.values())):
            self.ran = None  # it is asked once
            return
        others = sorted(name for name in self.ran if name)
        raise TargetError(
            f"the training step ran none of the {len(layers)} targeted layers ({_some(layers)}), so nothing can be "
            f"{what}: it ran {_some(others) if others else 'no module of the network'}; set network and targets to "
            "what training_step calls"
        )

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._recorder is None:
            return original(*args, **kwargs)
        return self._recorder.run_whole(original, *args, **kwargs)

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_known or self._network is None or is_repeating():
            return original(*args, **kwargs)
        self._recorder = step = StepRecorder(self._network, reads=self.is_in_parts)
        try:
            with nullcontext() if self._hides_modules else _recorded(step):
                output = original(*args, **kwargs)
        finally:
            self._recorder = None
        if output is not None or step.is_whole or step.ran:
            self._conclude(step)
        return output

    def _conclude(self, step: StepRecorder) -> None:
        network = self._network
        assert network is not None
        if self.ran is None and not self._hides_modules:
            self.ran = frozenset(step.ran)
        if step.is_whole:
            self.is_known = True
        elif self._hides_modules:
            self._hides_modules = False  # the next step is recorded
        elif not self.is_in_parts:
            self.parts = part_names(network, step)
            self.is_in_parts = bool(self.parts)
            self.is_known = self.is_in_parts and self._on_plan is None
        elif step.calls and self._on_plan is not None:
            self.plan, inputs = plan_parts(network, step)
            self.is_known = True
            self._on_plan(inputs)
        if self.is_known:
            self.release()

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as primitives; nothing is, if a part is called with an object of the user's."""
        plan = None if self.plan is None else self.plan.state_dict()
        if self.plan is not None and plan is None:
            return NetworkObserver().state_dict()
        return {"is_known": self.is_known, "is_in_parts": self.is_in_parts, "plan": plan}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.is_known, self.is_in_parts = state["is_known"], state["is_in_parts"]
        self.plan = None if state["plan"] is None else PartsPlan.from_state_dict(state["plan"])


@contextmanager
def _recorded(step: StepRecorder) -> Iterator[None]:
    """Record a step in which compiled parts run uncompiled: not every torch sees a hook in what it has compiled."""
    with torch.compiler.set_stance("force_eager"), step.recording():
        yield


def _has_gradient(layer: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in layer.parameters(recurse=False))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
