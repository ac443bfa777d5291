"""Likeliest classes as bytes: two for a logit, as few as a class index needs, two for the others' probability."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_optim.distillation.top_logits import TopLogits

_INDEX, _LOGITS, _CLASSES, _REST = "index", "logits", "classes", "rest at "


def packed_names(name: str, temperatures: Iterable[float]) -> list[str]:
    """Names of the tensors that ``pack_top_logits`` makes.

    Args:
        name: What stands before them.
        temperatures: At which the others' probability is held.
    """
    return [f"{name}/{part}" for part in (_CLASSES, _INDEX, _LOGITS, *map(_rest, temperatures))]


def packed_temperatures(name: str, fields: Iterable[str]) -> list[float]:
    """Temperatures at which the others' probability is among some tensors.

    Args:
        name: What stands before their names.
        fields: Names of the tensors.
    """
    begin = f"{name}/{_REST}"
    return sorted(float(field.removeprefix(begin)) for field in fields if field.startswith(begin))


def is_packed(name: str, fields: Collection[str]) -> bool:
    """Whether likeliest classes are among some tensors."""
    return f"{name}/{_INDEX}" in fields


def pack_top_logits(name: str, top: TopLogits) -> dict[str, Tensor]:
    """Tensors that say the same in fewer bytes.

    Logits are in half precision. The first is left out: it is the largest, and so 0.

    Args:
        name: What stands before their names.
        top: The likeliest classes, the first axis of which is that of the samples.

    Example:
        >>> top = TopLogits.of(torch.randn(2, 512, 32768), 32, [1.0])
        >>> packed = pack_top_logits("output", top)
        >>> sum(tensor[0, 0].nbytes for name, tensor in packed.items() if not name.endswith("classes"))
        128
    """
    index = top.indices.cpu().numpy().astype("<u4", order="C")
    width = (max(top.num_classes - 1, 1).bit_length() + 7) // 8
    packed = index.view(np.uint8).reshape(*index.shape, 4)[..., :width]
    samples = len(top.indices)
    return {
        f"{name}/{_CLASSES}": torch.full((samples,), top.num_classes, dtype=torch.int32),
        f"{name}/{_INDEX}": torch.from_numpy(np.ascontiguousarray(packed)),
        f"{name}/{_LOGITS}": top.logits[..., 1:].half(),
        **{f"{name}/{_rest(temperature)}": values.half() for temperature, values in top.rest.items()},
    }


def unpack_top_logits(name: str, fields: Mapping[str, Tensor], temperatures: Iterable[float]) -> TopLogits:
    """What ``pack_top_logits`` has packed.

    Args:
        name: What stands before the names.
        fields: The tensors by name, and perhaps others; on any device.
        temperatures: At which the others' probability is needed.
    """
    packed, logits = fields[f"{name}/{_INDEX}"], fields[f"{name}/{_LOGITS}"].float()
    places = torch.tensor([1 << 8 * place for place in range(packed.shape[-1])], device=packed.device)
    rest = {temperature: fields[f"{name}/{_rest(temperature)}"].float() for temperature in temperatures}
    first = torch.zeros_like(packed[..., 0, :1], dtype=torch.float32)
    classes = int(fields[f"{name}/{_CLASSES}"][0])
    return TopLogits(classes, (packed * places).sum(-1), torch.cat([first, logits], -1), rest)


def _rest(temperature: float) -> str:
    return f"{_REST}{float(temperature)}"
