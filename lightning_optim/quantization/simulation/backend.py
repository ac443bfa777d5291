"""Backends: what happens to a tensor where the placement quantizes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lightning_optim.surgery.torch_private import BatchNorm


class Backend(ABC):
    """Backend: carries out a placement by doing nothing, by simulation, or for export."""

    def serves(self, key: str) -> bool:
        """Whether an operator that has an integer form is to run in integers in this pass."""
        return True

    @abstractmethod
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        """Return the quantized activation."""

    def moved(self, tensor: Tensor, key: str) -> Tensor:
        """Return an activation whose quantized values were moved, such as by a view."""
        return tensor

    @abstractmethod
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the quantized weight and the bias of a layer, with ``norm`` folded in if there is one."""

    def pass_unknown(self, key: str) -> None:  # noqa: B027  # most backends have nothing to say
        """Take note that an activation stays as it is, since the plan does not know its operator."""

    def repeated(self) -> Backend:
        """Return what computes the same once more, and takes note of nothing."""
        return self

    @abstractmethod
    def folds(self, norm: BatchNorm) -> bool:
        """Whether a batch norm is folded in this pass; if not, it runs by itself."""

    def linear(self, inputs: tuple[Tensor, Tensor, Tensor | None], key: str, input_key: str) -> Tensor:
        """Run a linear layer on its input, weight and bias, all quantized already."""
        return functional.linear(*inputs)

    def clip(self, tensor: Tensor, key: str, upper: float) -> Tensor:
        """Return an activation between zero and ``upper``; its quantizer ``key`` sees it afterwards."""
        return functional.hardtanh(tensor, 0.0, upper)

    def pool(
        self, function: Callable[..., Any], tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run an average pooling."""
        out: Tensor = function(tensor, *args, **kwargs)
        return out


@final
class FloatBackend(Backend):
    """Floating-point backend: leaves everything as it is, for a pass that only records.

    Args:
        watch: Takes the key of every activation that an integer operator reads, and the tensor.
    """

    def __init__(self, watch: Callable[[str, Tensor], object] | None = None) -> None:
        self._watch = watch

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        if self._watch is not None:
            self._watch(key, tensor)
        return tensor

    @override
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        return weight, bias

    @override
    def folds(self, norm: BatchNorm) -> bool:
        return False


class WrappedBackend(Backend):
    """Backend around another one, which does everything that a subclass does not do itself.

    Args:
        inner: The other one.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @override
    def serves(self, key: str) -> bool:
        return self.inner.serves(key)

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        return self.inner.activation(tensor, key)

    @override
    def moved(self, tensor: Tensor, key: str) -> Tensor:
        return self.inner.moved(tensor, key)

    @override
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.inner.weight(weight, bias, key, input_key, norm)

    @override
    def pass_unknown(self, key: str) -> None:
        self.inner.pass_unknown(key)

    @override
    def folds(self, norm: BatchNorm) -> bool:
        return self.inner.folds(norm)

    @override
    def linear(self, inputs: tuple[Tensor, Tensor, Tensor | None], key: str, input_key: str) -> Tensor:
        return self.inner.linear(inputs, key, input_key)

    @override
    def clip(self, tensor: Tensor, key: str, upper: float) -> Tensor:
        return self.inner.clip(tensor, key, upper)

    @override
    def pool(
        self, function: Callable[..., Any], tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        return self.inner.pool(function, tensor, args, kwargs)
