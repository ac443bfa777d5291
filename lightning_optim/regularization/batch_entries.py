"""Entries of a batch: which of its tensors are inputs that can be mixed, and which are labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from lightning_optim.errors import SampleError
from lightning_optim.surgery.containers import find_tensors, name_of


@final
@dataclass(frozen=True, slots=True)
class BatchEntries:
    """Inputs and labels of a batch, by the keys or places that lead to them, joined by dots.

    Args:
        inputs: Tensors that are mixed, ``[B, ...]``.
        labels: Tensors that say what the inputs are, ``[B]`` or ``[B, ...]``.
    """

    inputs: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """Number of samples."""
        return next(iter(self.labels.values())).shape[0]


def find_entries(
    batch: Any, input_keys: Sequence[str], label_keys: Sequence[str], *, needs_inputs: bool = True
) -> BatchEntries:
    """Find the inputs and the labels of a batch.

    Without keys, the label is the only tensor of integers that has the batch dimension, and inputs are all tensors in
    floating point that have it.

    Args:
        batch: Containers of tensors: tuples, dictionaries, dataclasses, in one another.
        input_keys: Keys or places of the inputs, as ``"image"`` or ``"0.left"``, a container standing for all in it.
        label_keys: The same for labels.
        needs_inputs: Whether inputs are mixed; else there may be none.

    Raises:
        SampleError: If it is not clear what is what, naming the tensors that there are.

    Example:
        >>> import torch
        >>> batch = {"image": torch.zeros(4, 3, 8, 8), "kind": torch.zeros(4, dtype=torch.long), "scale": torch.ones(1)}
        >>> found = find_entries(batch, (), ())
        >>> list(found.inputs), list(found.labels), found.size
        (['image'], ['kind'], 4)
    """
    tensors = {name_of(path): tensor for path, tensor in find_tensors(batch)}
    inputs = _named(tensors, input_keys, "input_keys")
    labels = _named(tensors, label_keys, "label_keys") or _only_label(tensors, inputs)
    size = _size_of(labels, tensors)
    inputs = inputs or {
        name: each for name, each in _floats(tensors).items() if name not in labels and _has_samples(each, size)
    }
    if not inputs and needs_inputs:
        raise SampleError(
            f"nothing to mix: no tensor in floating point has {size} samples, as the labels {list(labels)} do; the "
            f"batch holds {_listed(tensors)}: name the inputs in input_keys"
        )
    odd = next((name for name, each in inputs.items() if not _has_samples(each, size)), None)
    if odd is not None or inputs.keys() & labels.keys():
        odd = odd or sorted(inputs.keys() & labels.keys())[0]
        raise SampleError(
            f"the input {odd!r} must have {size} samples, as the labels {list(labels)} do, and be none of them; the "
            f"batch holds {_listed(tensors)}: name inputs in input_keys and labels in label_keys"
        )
    return BatchEntries(inputs, labels)


def _named(tensors: Mapping[str, Tensor], keys: Sequence[str], setting: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key in keys:
        inner = {name: each for name, each in tensors.items() if name == key or name.startswith(f"{key}.")}
        if not inner:
            raise SampleError(f"{setting} names {key!r}, but the batch holds {_listed(tensors)}")
        found |= inner
    return found


def _only_label(tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one tensor of integers that may be a label."""
    sizes = {each.shape[0] for each in (inputs or _floats(tensors)).values() if each.ndim}
    found = {
        name: each
        for name, each in tensors.items()
        if name not in inputs and not each.is_floating_point() and each.ndim and (not sizes or each.shape[0] in sizes)
    }
    if len(found) == 1:
        return found
    which = f"any of {sorted(found)} may be the label" if found else "no tensor of integers has a label for each sample"
    raise SampleError(
        f"labels that cannot be mixed: {which}; the batch holds {_listed(tensors)}: name the labels in label_keys"
    )


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each for name, each in tensors.items() if each.is_floating_point()}


def _size_of(labels: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> int:
    sizes = {each.shape[0] if each.ndim else 0 for each in labels.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise SampleError(
            f"labels that cannot be mixed: {list(labels)} must have one entry for each sample; the batch holds "
            f"{_listed(tensors)}"
        )
    return sizes.pop()


def _has_samples(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == size


def _listed(tensors: Mapping[str, Tensor]) -> str:
    """The tensors that there are, with type and shape."""
    kinds = {name: str(each.dtype).removeprefix("torch.") for name, each in tensors.items()}
    listed = [f"{name!r} ({kinds[name]} {list(each.shape)})" for name, each in tensors.items()]
    return ", ".join(listed) or "no tensors"
