"""Snapshot of what a model and its optimizers hold, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_optim.surgery.cut import CutPlan, cut_tensor
from lightning_optim.surgery.select import plain_name


@final
class Snapshot:
    """Parameters, buffers and optimizer states by name, of a model and of averaged copies of it.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> snapshot, bias = Snapshot(), layer.bias.item()
        >>> snapshot.take(layer, [])
        >>> _ = nn.init.zeros_(layer.bias)
        >>> snapshot.put_back(layer, [])
        >>> layer.bias.item() == bias
        True
    """

    def __init__(self) -> None:
        self._modules: list[dict[str, Tensor]] = []
        self._moments: list[dict[str, dict[str, Any]]] = []

    def __bool__(self) -> bool:
        return bool(self._modules)

    @property
    def modules(self) -> Sequence[Mapping[str, Tensor]]:
        """What is remembered of the model and of each copy: name -> tensor."""
        return self._modules

    def forget(self) -> None:
        """Forget everything."""
        self._modules, self._moments = [], []

    @torch.no_grad()
    def take(self, root: nn.Module, optimizers: Sequence[Optimizer], copies: Iterable[nn.Module] = ()) -> None:
        """Remember everything as it is now; what was remembered before is forgotten."""
        self._modules = [
            {name: tensor.detach().clone() for name, tensor in _tensors(module).items()} for module in (root, *copies)
        ]
        names = {parameter: plain_name(name) for name, parameter in root.named_parameters()}
        self._moments = [
            {
                name: _copied(optimizer.state[parameter])
                for parameter, name in names.items()
                if parameter in optimizer.state
            }
            for optimizer in optimizers
        ]

    @torch.no_grad()
    def put_back(self, root: nn.Module, optimizers: Sequence[Optimizer], copies: Iterable[nn.Module] = ()) -> None:
        """Let everything be as it was; parameters stay the same objects, learning rates are left alone."""
        for module, held in zip((root, *copies), self._modules, strict=False):
            for name, tensor in _tensors(module).items():
                tensor.copy_(held[name])
        parameters = {plain_name(name): parameter for name, parameter in root.named_parameters()}
        for optimizer, states in zip(optimizers, self._moments, strict=False):
            owned = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            for name, parameter in parameters.items():
                if parameter not in owned:
                    continue
                optimizer.state.pop(parameter, None)
                if name in states:
                    optimizer.state[parameter] = _copied(states[name], parameter)

    @torch.no_grad()
    def put_back_masked(
        self, root: nn.Module, keep: Mapping[str, Tensor], prefix: str, copies: Iterable[nn.Module] = ()
    ) -> None:
        """Let what is masked be as it was, and with it the buffers of the network: masked channels fill none.

        Args:
            root: The model that was remembered.
            keep: Tensor of the network -> ``True`` where it is not masked.
            prefix: Where the network lies in the model, itself empty or ending in a dot.
            copies: Averaged copies, in the same order.
        """
        for module, held in zip((root, *copies), self._modules, strict=False):
            parameters = {plain_name(name): parameter for name, parameter in module.named_parameters()}
            for name, mask in keep.items():
                parameter = parameters[f"{prefix}{name}"]
                parameter.copy_(torch.where(mask.to(parameter.device), parameter, held[f"{prefix}{name}"]))
            for name, buffer in module.named_buffers():
                if plain_name(name).startswith(prefix):
                    buffer.copy_(held[plain_name(name)])

    def cut(self, plan: CutPlan, *prefixes: str) -> None:
        """Follow a cut of the model: ``plan`` names tensors below each prefix, itself empty or ending in a dot."""
        for full, cuts in ((f"{prefix}{name}", cuts) for prefix in prefixes for name, cuts in plan.items()):
            for held in self._modules:
                if full not in held:
                    continue
                shape = held[full].shape
                held[full] = cut_tensor(held[full], cuts)
                for states in self._moments if held is self._modules[0] else ():
                    for key, value in states.get(full, {}).items():
                        if isinstance(value, Tensor) and value.shape == shape:
                            states[full][key] = cut_tensor(value, cuts)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and primitives, if the optimizers' states are."""
        return {"modules": list(self._modules), "moments": list(self._moments)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._modules, self._moments = list(state["modules"]), list(state["moments"])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = {plain_name(name): parameter.detach() for name, parameter in module.named_parameters()}
    return parameters | {plain_name(name): buffer for name, buffer in module.named_buffers()}


def _copied(state: Mapping[str, Any], parameter: Tensor | None = None) -> dict[str, Any]:
    """Copy of one parameter's state; moments go where the parameter is, counters stay where they were."""
    copied: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            copied[key] = copy.deepcopy(value)
        elif parameter is not None and value.dim() > 0:
            copied[key] = value.detach().to(parameter.device, copy=True)
        else:
            copied[key] = value.detach().clone()
    return copied
