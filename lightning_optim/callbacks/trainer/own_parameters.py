"""Parameters of a callback's own, trained beside the user's parameters by an optimizer of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer


@final
class OwnParameters:
    """Parameters of a callback's own, and their optimizer.

    Gradients are averaged over ranks, and the loss scale of half precision is divided out.

    The tensors lie in no module: there they would break strict loading and averaged copies, and diverge under FSDP2. As
    groups of the user's optimizer they would break a resume. Each rank holds all of them.

    The owner calls ``note_step`` in ``on_before_optimizer_step``, ``end_batch`` in ``on_train_batch_end`` and ``move``
    in ``on_train_start``. Gradients of batches without an optimizer step are accumulated.

    Args:
        tensors: Leaf tensors that need a gradient, such as the parameters of a module; at least one.
        optimizer: Makes the optimizer, given the tensors.

    Raises:
        ValueError: If there is no tensor, or one needs no gradient.

    Example:
        >>> own = OwnParameters([torch.zeros(2, requires_grad=True)], lambda tensors: torch.optim.Adam(tensors, 0.01))
        >>> own.tensors[0].tolist()
        [0.0, 0.0]
    """

    def __init__(self, tensors: Iterable[Tensor], optimizer: Callable[[list[Tensor]], Optimizer]) -> None:
        self.tensors = list(tensors)
        if not self.tensors or not all(tensor.is_leaf and tensor.requires_grad for tensor in self.tensors):
            raise ValueError("an optimizer needs at least one tensor, and each must be a leaf that needs a gradient")
        self.optimizer = optimizer(self.tensors)
        self._loss_scale: float | None = None

    def note_step(self, trainer: Trainer) -> None:
        """Take note that the batch ends with a step; of several optimizers, one step a batch counts."""
        self._loss_scale = loss_scale_of(trainer)

    def end_batch(self, trainer: Trainer) -> None:
        """Take one step if the user's optimizer did, unless a gradient is not finite, and forget the gradients.

        Where the training step keeps its optimizer to itself, each batch is a step.
        """
        loss_scale, self._loss_scale = scale_of_step(trainer, self._loss_scale), None
        if loss_scale is None:
            return
        found = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.tensors]
        gradients = [mean_over_ranks(trainer, gradient) / loss_scale for gradient in found]
        if all(bool(gradient.isfinite().all()) for gradient in gradients):  # the mean is the same on every rank
            for tensor, gradient in zip(self.tensors, gradients, strict=True):
                tensor.grad = gradient
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def move(self, device: torch.device) -> None:
        """Carry tensors, gradients and the optimizer's state over to a device; the tensors stay the same objects."""
        for tensor in self.tensors:
            gradient, tensor.grad = tensor.grad, None
            tensor.data = tensor.data.to(device)
            tensor.grad = None if gradient is None else gradient.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return values, gradients and the optimizer's state, as primitives and tensors."""
        gradients = [None if each.grad is None else each.grad.cpu().clone() for each in self.tensors]
        values = [tensor.detach().cpu().clone() for tensor in self.tensors]
        return {"values": values, "gradients": gradients, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned, in place.

        Raises:
            ValueError: If the shapes are of other tensors; nothing has changed then.
        """
        saved, here = ([list(each.shape) for each in values] for values in (state["values"], self.tensors))
        if saved != here:
            raise ValueError(f"the checkpoint holds tensors of shape {saved}, this callback owns {here}")
        with torch.no_grad():
            for tensor, value, gradient in zip(self.tensors, state["values"], state["gradients"], strict=True):
                tensor.copy_(value)
                tensor.grad = None if gradient is None else gradient.clone().to(tensor.device)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def scale_of_step(trainer: Trainer, noted: float | None) -> float | None:
    """Return what the loss of a batch with a step was multiplied by; ``None`` for a batch without one.

    Args:
        trainer: The trainer.
        noted: ``loss_scale_of`` it in ``on_before_optimizer_step``, if that came. Where the training step keeps its
            optimizer to itself it never comes, and each batch is a step.
    """
    return noted if noted is not None or has_optimizer(trainer) else loss_scale_of(trainer)


def has_optimizer(trainer: Trainer) -> bool:
    """Whether a trainer knows an optimizer of its module; under manual optimization a step may keep one to itself."""
    if trainer.lightning_module.automatic_optimization:
        return True
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    owned = {id(parameter) for group in groups for parameter in group["params"]}
    return any(id(parameter) in owned for parameter in trainer.lightning_module.parameters())


def loss_scale_of(trainer: Trainer) -> float:
    """Return what half precision multiplies the loss by; 1 without it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def mean_over_ranks(trainer: Trainer, gradient: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks."""
    reduced = trainer.strategy.reduce(gradient, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return reduced
