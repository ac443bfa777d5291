"""What penalties must know of the network besides its weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_optim.callbacks.trainer.lightning_private import compiler_of
from lightning_optim.errors import TapError, TargetError
from lightning_optim.graph.group import Group
from lightning_optim.regularization.coupled_groups import CoupledGroups
from lightning_optim.regularization.penalty.base import Response
from lightning_optim.surgery.calls import NetworkCalls
from lightning_optim.surgery.compilation import find_compilation
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.leaf_inputs import LeafInputs
from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import is_call_compiled, is_compiled_wrapper


@final
class NetworkWatch:
    """Watch over the calls of one network: which channels are coupled, and how its output depends on its inputs.

    Args:
        needs_groups: Whether coupled channels are asked for.
        needs_responses: Whether the output is differentiated by the inputs.
    """

    def __init__(self, *, needs_groups: bool, needs_responses: bool) -> None:
        self._needs_responses, self._is_needed = needs_responses, needs_groups or needs_responses
        self._calls, self._inputs, self._groups = NetworkCalls(), LeafInputs(), CoupledGroups()
        self._taken: list[ModuleCall] | None = None
        self._network: nn.Module | None = None
        self._is_root = False

    def attach(self, pl_module: LightningModule, name: str, network: nn.Module) -> None:
        """Watch a network from now on.

        Raises:
            TargetError: If its output must be differentiated twice, and ``torch.compile`` compiles it.
        """
        if not self._is_needed:
            return
        if self._needs_responses and _is_compiled(pl_module, network):
            raise TargetError(
                "a Jacobian penalty differentiates gradients of the network, which code of torch.compile cannot do: "
                "train it uncompiled"
            )
        self._calls.attach(pl_module, name, network)
        self._network, self._is_root = network, network is pl_module

    def open(self) -> None:
        """Watch a training step."""
        self._taken = None
        if self._network is None:
            return
        self._calls.open()
        if self._needs_responses:
            self._inputs.open(self._network, is_root=self._is_root)

    def close(self) -> None:
        """End the step; a second call does nothing."""
        self._inputs.close()
        self._calls.close()
        self._taken = None

    def remove(self) -> None:
        """Take every hook off; a second call does nothing."""
        self.close()
        self._calls.remove()
        self._network = None

    def couple(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find coupled channels with inputs that are known before the first step.

        Raises:
            CaptureError: If the network cannot be captured as a graph.
        """
        self._groups.couple(network, args, kwargs)

    def groups(self, network: nn.Module, weights: Iterable[str]) -> tuple[Group, ...]:
        """Coupled channels that layers make, by the names of their weights in the network.

        Raises:
            CaptureError: If the network cannot be captured as a graph.
            TapError: If this step did not call the network, and its channels are not known.
            TargetError: If no channel of them can go.
        """
        if not self._groups.knows(network):
            call = self._take()[0]
            self._groups.couple(network, call.args, call.kwargs)
        return self._groups.of(network, weights)

    def responses(self) -> tuple[Response, ...]:
        """The network's calls in this step, each with the inputs that its output can be differentiated by.

        Raises:
            TapError: If there was none, or one that has no such input or not one output.
        """
        return tuple(map(_response, self._take()))

    def _take(self) -> list[ModuleCall]:
        if self._taken is None:
            self._taken = self._calls.take()
        return self._taken


def _response(call: ModuleCall) -> Response:
    inputs = [tensor for tensor in tensors_of((call.args, call.kwargs)) if tensor.requires_grad]
    outputs: list[Tensor] = [tensor for tensor in tensors_of(call.output) if tensor.requires_grad]
    if not inputs or len(outputs) != 1:
        raise TapError(
            "a Jacobian penalty needs a network that training_step calls as a whole, with an input in floating point "
            f"and one output: here {len(inputs)} inputs and {len(outputs)} outputs can be differentiated; set network "
            "to a part that is called so"
        )
    return Response(tuple(inputs), outputs[0])


def _is_compiled(pl_module: LightningModule, network: nn.Module) -> bool:
    in_parts = any(is_compiled_wrapper(part) or is_call_compiled(part) for part in network.modules())
    return in_parts or find_compilation(pl_module, network, compiler_of(pl_module)) is not None
