"""Copies of a live model, with parameters of their own or with the model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model, stand_ins: Mapping[Tensor, Tensor] | None = None) -> Model:
    """Return a deep copy, whatever the model has come to hold while it was trained.

    A tensor that was computed from parameters, such as the loss in a metric's cache, is copied as a plain value. What
    cannot be copied, such as an open file, is shared. The trainer that a LightningModule holds on to is left out.

    Args:
        model: The model; left untouched.
        stand_ins: Tensors of the model, and what takes their place in the copy.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.answer = layer.weight.sum()
        >>> copied = copy_model(layer)
        >>> copied.answer.requires_grad, layer.answer.requires_grad
        (False, True)
    """
    memo: dict[int, Any] = {id(tensor): stand_in for tensor, stand_in in (stand_ins or {}).items()}
    memo |= {id(held): None for module in model.modules() for held in vars(module).values() if _is_trainer(held)}
    with _GraphsLeftBehind():
        try:
            return copy.deepcopy(model, dict(memo))
        except Exception:  # whatever a class raises that cannot be copied
            return copy.deepcopy(model, memo | _uncopyable(model, memo))


def eval_copy(model: Model, stand_ins: Mapping[Tensor, Tensor] | None = None) -> Model:
    """Return a ``copy_model`` in evaluation mode.

    Example:
        >>> layer = nn.Dropout()
        >>> eval_copy(layer).training, layer.training
        (False, True)
    """
    return copy_model(model, stand_ins).eval()


def eval_view(model: Model) -> Model:
    """Return a copy in evaluation mode whose parameters are those of the model: for reading, at no cost in memory.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> view = eval_view(layer)
        >>> view.weight is layer.weight, view.running_mean is layer.running_mean
        (True, False)
    """
    return eval_copy(model, {parameter: parameter for parameter in model.parameters()})


@final
class _GraphsLeftBehind(TorchFunctionMode):
    """Lets what was computed from parameters be copied; by itself torch copies leaves of a graph alone."""

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _is_trainer(held: object) -> bool:
    """Whether it is a trainer of Lightning, which holds the model in turn; perhaps by a weak reference."""
    return any(base.__name__ in ("Trainer", "Fabric") for base in held.__class__.__mro__)


def _uncopyable(model: nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    """What modules hold, beside parameters, buffers and children, that cannot be copied: it stands for itself."""
    known = {**memo, **{id(module): module for module in model.modules()}}  # who refers to a module is not to blame
    found: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            for held in value.values() if isinstance(value, dict) else [value]:  # hooks one by one
                try:
                    copy.deepcopy(held, dict(known))
                except Exception:  # as above
                    found[id(held)] = held
    return found
