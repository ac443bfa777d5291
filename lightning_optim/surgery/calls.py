"""Calls of a network in one training step: its inputs and its outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, final

from torch import nn

from lightning_optim.errors import TapError
from lightning_optim.surgery.parts import StepRecorder, part_names
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.tap import ModuleCall, Taps
from lightning_optim.surgery.torch_private import is_call_compiled, is_compiled_wrapper, is_recomputing


@final
class NetworkCalls:
    """Recorder of the calls of one network, while it is open.

    A network below the LightningModule is tapped by a hook. The LightningModule itself is not: under DDP its hooks fire
    a second time, around the training step. There, ``forward`` is wrapped on the instance.

    Where the first recorded step calls parts of the network, each once, and not the network itself, they count as one
    call, with the arguments of the first part and the output of the last.
    """

    def __init__(self) -> None:
        self._patches, self._taps, self._watch = Patches(), Taps(), ExitStack()
        self._root_calls: list[ModuleCall] = []
        self._is_root = self._is_open = False
        self._network: nn.Module | None = None
        self._recorder: StepRecorder | None = None
        self._parts: tuple[str, ...] | None = None
        self.name: str | None = None

    def attach(self, root: nn.Module, name: str, network: nn.Module) -> None:
        """Set hooks on ``network``; nothing is recorded before ``open``.

        Args:
            root: The LightningModule.
            name: Plain name of the network in it; empty if it is ``root`` itself.
            network: The module of that name.
        """
        self.name, self._network = name, network
        self._is_root = network is root
        is_compiled = is_call_compiled(root) or any(
            is_compiled_wrapper(module) or is_call_compiled(module) for module in network.modules()
        )
        self._parts = () if is_compiled else None  # hooks on all modules would have it compiled twice
        if self._is_root:
            self._patches.wrap(root, "forward", self._forward)
        else:
            self._taps.attach({name: network})

    def open(self) -> None:
        """Forget what was seen and start to record."""
        self.close()
        self._taps.open()
        self._is_open = True
        if self._parts is None and self._network is not None:
            self._recorder = self._watch.enter_context(StepRecorder(self._network).recording())

    def close(self) -> None:
        """Stop recording and forget what was seen."""
        self._taps.close()
        self._watch.close()
        self._recorder = None
        self._root_calls, self._is_open = [], False

    def take(self) -> list[ModuleCall]:
        """Stop recording and return the calls, in order.

        Raises:
            TapError: If there was none, or one cannot be put together from the parts that were called.
        """
        if self._parts:
            return [_joined(self._taps.take(), self._parts)]
        calls = self._root_calls if self._is_root else self._taps.take(may_be_silent=True).get(self.name or "", [])
        recorder = self._recorder
        self.close()
        if calls:
            self._parts = ()
        elif recorder is not None and self._network is not None:
            calls = self._take_parts(self._network, recorder)
        if not calls:
            raise TapError(
                f"no forward pass went through {repr(self.name) if self.name else 'the module'} in this step, nor "
                "through any part of it, so it is not known what it is given; set network to the submodule that "
                "training_step calls"
            )
        return calls

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        self._patches.undo()
        self._taps.remove()
        self.close()
        self._network = self.name = None

    def _take_parts(self, network: nn.Module, step: StepRecorder) -> list[ModuleCall]:
        parts = part_names(network, step)
        if not parts:
            return []
        calls: dict[str, list[ModuleCall]] = {}
        for name, call in step.calls:
            calls.setdefault(name, []).append(call)
        joined = _joined(calls, parts)
        self._patches.undo()
        self._taps.remove()
        self._taps.attach({name: submodule(network, name) for name in parts})
        self._parts = parts
        return [joined]

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._recorder is not None:
            output = self._recorder.run_whole(original, *args, **kwargs)
        else:
            output = original(*args, **kwargs)
        if self._is_open and not is_recomputing():
            self._root_calls.append(ModuleCall(args, kwargs, output))
        return output


def _joined(calls: Mapping[str, Sequence[ModuleCall]], parts: Sequence[str]) -> ModuleCall:
    """The parts' calls as one: from the arguments of the first to the output of the last."""
    counts = Counter({name: len(calls[name]) for name in parts})
    again = next((name for name, count in counts.items() if count > 1), None)
    if again is not None:
        raise TapError(
            f"the training step calls the parts {', '.join(map(repr, parts))}, and {again!r} {counts[again]} times: "
            "what goes in and what comes out is not clear; set network to the part that the teacher stands for"
        )
    first, last = calls[parts[0]][0], calls[parts[-1]][0]
    return ModuleCall(first.args, first.kwargs, last.output)
