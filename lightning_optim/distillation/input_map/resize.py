"""Input map to another resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.input_map.base import InputMap
from lightning_optim.errors import TeacherError
from lightning_optim.surgery.containers import map_tensors, tensors_of
from lightning_optim.surgery.inputs import Inputs


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(InputMap):
    """Input map to another resolution: the teacher is given the student's images, resized.

    Use it where the teacher was trained on larger images than the student is to see, or on smaller ones.

    Args:
        size: Height and width, or one number for both; at least 1.
        mode: How pixels are found between pixels: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``. Before images become
            smaller they are smoothed, unless it is ``"nearest"``.

    Raises:
        ValueError: If the size is out of range.

    Example:
        >>> import torch
        >>> resized = Resize(size=8)(Inputs((torch.ones(2, 3, 4, 4),)), None)
        >>> resized.args[0].shape
        torch.Size([2, 3, 8, 8])
    """

    size: int | Sequence[int]
    mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        sizes = self._sizes()
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"size must be height and width, or one number for both, at least 1: got {self.size}")

    @override
    def __call__(self, inputs: Inputs, batch: Any) -> Inputs:
        """Resize each image, ``[B, C, H, W]`` of a floating-point type; everything else is handed on.

        Args:
            inputs: What the student's network was given.
            batch: The batch.

        Raises:
            TeacherError: If there is no image.
        """
        found = tensors_of((inputs.args, inputs.kwargs))
        if not any(map(_is_image, found)):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in found) or "none"
            raise TeacherError(
                f"Resize needs floating-point images of shape [B, C, H, W], got tensors of shape {shapes}: write an "
                "input_map of your own for these inputs"
            )
        args, kwargs = map_tensors(self._resized, (inputs.args, inputs.kwargs))
        return Inputs(args, kwargs)

    def _resized(self, tensor: Tensor) -> Tensor:
        if not _is_image(tensor) or [*tensor.shape[2:]] == self._sizes():
            return tensor
        if self.mode == "nearest":
            return F.interpolate(tensor, self._sizes(), mode="nearest")
        return F.interpolate(tensor, self._sizes(), mode=self.mode, antialias=True)

    def _sizes(self) -> list[int]:
        return [self.size] * 2 if isinstance(self.size, int) else [*self.size]


def _is_image(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()
