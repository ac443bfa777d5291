"""Atomic writes: a file is there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Write a file so that a crash at any moment leaves the old file or the new one, never a part.

    Args:
        path: Path of the file; missing folders are made.
        data: Content of the file.

    Returns:
        ``path``.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> write_atomic(f"{folder.name}/a/b.txt", b"whole").read_bytes()
        b'whole'
        >>> folder.cleanup()
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())  # mkstemp makes it private
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
