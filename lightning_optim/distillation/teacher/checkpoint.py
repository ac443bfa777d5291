"""Teacher from a checkpoint of Lightning or of plain torch."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.distillation.teacher.file import FileTeacher
from lightning_optim.errors import ArtefactError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(FileTeacher):
    """Teacher from a checkpoint: a ``.ckpt`` of Lightning or a saved ``state_dict``. Code in it is never run.

    Arguments are ``FileTeacher``'s.
    """

    @override
    def read(self, path: Path) -> Mapping[str, Tensor]:
        content = _read(path)
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
            raise ArtefactError(
                f"{path} holds neither a 'state_dict' nor weights by name, but a {type(content).__name__}; "
                "save the teacher's state_dict"
            )
        return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the safe loader fails wherever a damaged file breaks off, with whatever that raises
        reason = _reason(error) or f"is truncated or no checkpoint ({path.stat().st_size} bytes); copy or save it again"
        raise ArtefactError(f"{path} {reason}") from error


def _reason(error: Exception) -> str | None:
    """Say what the safe loader refused; ``None`` if it merely found no end."""
    message = str(error)
    if not isinstance(error, pickle.UnpicklingError) or "Unsupported" not in message:
        return None
    _, is_named, rest = message.partition("GLOBAL ")
    what = f"the pickled object {rest.split()[0].rstrip('.')!r}" if is_named else "a pickle"
    return (
        f"holds {what} beside plain weights (or breaks off there), which could run code, and was not loaded; "
        "save the model's state_dict alone, or as safetensors"
    )
