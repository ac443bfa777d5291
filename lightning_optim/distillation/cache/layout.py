"""Layout of a record: how the tensors of one sample lie side by side in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of a record: the name, the number format and the shape of each tensor of a sample.

    Args:
        fields: Those of each tensor, in the order of their bytes.

    Example:
        >>> layout = Layout.of({"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
        >>> layout.size, layout.unpack(layout.pack({"logits": torch.tensor([[5.0, 6.0]])}))
        (8, {'logits': tensor([[5., 6.]])})
    """

    fields: tuple[tuple[str, str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of tensors whose first axis is that of the samples.

        Raises:
            ValueError: If a number format cannot be written.
        """
        named = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        odd = next((dtype for dtype in named.values() if dtype not in _DTYPES), None)
        if odd is not None:
            raise ValueError(f"answers in {odd} cannot be kept; those that can are {', '.join(_DTYPES)}")
        return cls(tuple((name, named[name], tuple(tensor.shape[1:])) for name, tensor in tensors.items()))

    @classmethod
    def read(cls, fields: Sequence[Any]) -> Layout:
        """The layout that a file describes.

        Raises:
            ValueError: If it is none.
        """
        found = tuple((str(name), str(dtype), tuple(map(int, shape))) for name, dtype, shape in fields)
        if any(dtype not in _DTYPES or min(shape, default=0) < 0 for _, dtype, shape in found):
            raise ValueError(f"no layout of tensors: {fields}")
        return cls(found)

    @property
    def size(self) -> int:
        """Bytes of a record."""
        return sum(stop - start for _, start, stop in self._spans())

    def pack(self, tensors: Mapping[str, Tensor]) -> Bytes:
        """The records of samples, ``[samples, size]``.

        Args:
            tensors: Tensors of this layout, by name.
        """
        num_samples = len(next(iter(tensors.values())))
        records = np.empty((num_samples, self.size), np.uint8)
        for name, start, stop in self._spans():
            plain = tensors[name].detach().cpu().contiguous().reshape(num_samples, -1)
            records[:, start:stop] = plain.view(torch.uint8).numpy()
        return records

    def unpack(self, records: Bytes) -> dict[str, Tensor]:
        """The tensors of records, by name.

        Args:
            records: ``[samples, size]``.
        """
        tensors = {}
        for (name, start, stop), (_, dtype, shape) in zip(self._spans(), self.fields, strict=True):
            plain = torch.from_numpy(records[:, start:stop].copy()).reshape(-1)  # a copy is aligned
            tensors[name] = plain.view(_DTYPES[dtype]).view(len(records), *shape)
        return tensors

    def _spans(self) -> list[tuple[str, int, int]]:
        spans, start = [], 0
        for name, dtype, shape in self.fields:
            stop = start + math.prod(shape) * _DTYPES[dtype].itemsize
            spans.append((name, start, stop))
            start = stop
        return spans
