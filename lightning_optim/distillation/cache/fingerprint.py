"""Fingerprint of a teacher: what tells its answers from those of another."""

from __future__ import annotations

import hashlib

from torch import nn

from lightning_optim.distillation.cache.sample import as_bytes
from lightning_optim.surgery.select import plain_name


def weights_fingerprint(teacher: nn.Module) -> str:
    """Hash of the names, shapes, number formats and values of all weights and buffers; the same on whatever device.

    Args:
        teacher: The teacher, as it is run.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_fingerprint(layer)
        >>> _ = layer.bias.data.add_(1.0)
        >>> len(before), weights_fingerprint(layer) == before
        (32, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{plain_name(name)} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()
