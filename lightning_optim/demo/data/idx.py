"""IDX, the file format of MNIST and similar sets."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_optim.errors import ArtefactError

_UINT8 = 8  # the format's code of the only element type these data sets use


def find_idx(folder: Path, name: str) -> Path | None:
    """Return ``name`` or ``name.gz`` in a folder, or ``None``."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """Read a file of bytes, gzipped or not.

    The format: two zero bytes, the element type, the number of dimensions, each dimension as four bytes with the
    highest first, then the elements.

    Args:
        path: A file of ``uint8`` elements.

    Returns:
        ``uint8`` tensor of the shape in the header.

    Raises:
        ArtefactError: If the file is truncated or of another format.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ArtefactError(f"{path} cannot be read ({error}): fetch it again") from error
    return parse_idx(data, str(path))


def parse_idx(data: bytes, source: str) -> Tensor:
    """Turn the content of an IDX file into a tensor; ``source`` names it in errors.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]), "example")
        tensor([5, 7], dtype=torch.uint8)
    """
    rank = data[3] if len(data) > 4 else 0
    if data[:3] != bytes([0, 0, _UINT8]) or len(data) < 4 + 4 * rank:
        raise ArtefactError(f"{source} is no IDX file of bytes: it starts with {data[:4].hex(' ')}")
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", count=rank, offset=4))
    content = len(data) - 4 - 4 * rank
    if content != math.prod(shape):
        raise ArtefactError(f"{source} holds {content} bytes where its header promises {math.prod(shape)}: damaged?")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * rank).view(shape)
