"""Samples of a call: how many there are, how each is told from the others, and a call of some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_optim.surgery.containers import as_plain, find_tensors, map_tensors, name_of
from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import pytree

KEY_SIZE = 16


def num_samples(call: ModuleCall) -> int:
    """Size of the first axis of the first tensor that a network was given.

    Raises:
        ValueError: If it was given none.
    """
    for _, tensor in find_tensors((call.args, call.kwargs)):
        if tensor.ndim:
            return len(tensor)
    raise ValueError("answers are kept by sample, but the student's network was given no tensor with a batch axis")


def content_keys(inputs: Any, count: int) -> list[bytes]:
    """Hash of what a network is given of each sample: same inputs, same key, on whatever device they are.

    A key covers the sample's part of each tensor whose first axis is that of the samples, the whole of each other
    tensor, numbers and words beside them, and the names, shapes and number formats of all. A first axis of 1 stands for
    all samples, so that one alone in a batch has the key that it has among others.

    Args:
        inputs: Tensors and their containers.
        count: How many samples there are.

    Example:
        >>> first, second, third = content_keys((torch.tensor([[1.0], [2.0], [1.0]]),), 3)
        >>> first == third, first == second
        (True, False)
    """
    shared = hashlib.blake2b(repr(_plain_values(inputs)).encode())
    parts: list[Any] = []
    for path, tensor in find_tensors(inputs):
        has_rows = _is_batched(tensor, count) or _is_batched(tensor, 1)
        shared.update(f"{name_of(path)} {tensor.dtype} {list(tensor.shape[has_rows:])}".encode())
        content = as_bytes(tensor)
        if has_rows:
            parts.append(content.reshape(len(tensor), -1))
        else:
            shared.update(content)
    begin = shared.digest()
    keys = []
    for row in range(count):
        digest = hashlib.blake2b(begin, digest_size=KEY_SIZE)
        for part in parts:
            digest.update(part[row % len(part)])
        keys.append(digest.digest())
    return keys


def index_keys(index: Tensor, turn: int) -> list[bytes]:
    """Keys of samples that a batch numbers itself.

    Args:
        index: An integer for each sample.
        turn: Which call of the network in the step it is, from 0.
    """
    return [hashlib.blake2b(f"{number} {turn}".encode(), digest_size=KEY_SIZE).digest() for number in index.tolist()]


def select_samples(call: ModuleCall, batch: Any, rows: Sequence[int]) -> tuple[ModuleCall, Any]:
    """A call and a batch of some of the samples; tensors without a batch axis stay as they are.

    Args:
        call: The call.
        batch: The batch; ``None`` comes back if nobody knows how to make another of its kind.
        rows: The samples, by place.

    Example:
        >>> call = ModuleCall((torch.tensor([1, 2, 3]), torch.tensor(7)), {}, None)
        >>> select_samples(call, None, [2, 0])[0].args
        (tensor([3, 1]), tensor(7))
    """
    count = num_samples(call)

    def select(tensor: Tensor) -> Tensor:
        if not _is_batched(tensor, count):
            return tensor
        return tensor.index_select(0, torch.tensor(rows, device=tensor.device))

    args, kwargs = map_tensors(select, (call.args, call.kwargs))
    some = ModuleCall(args, kwargs, None)
    try:
        return some, map_tensors(select, batch)
    except TypeError:
        return some, None


def as_bytes(tensor: Tensor) -> Any:
    """Content of a tensor as an array of bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _is_batched(tensor: Tensor, count: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == count


def _plain_values(inputs: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(as_plain(inputs)) if isinstance(leaf, (bool, int, float, str))]
