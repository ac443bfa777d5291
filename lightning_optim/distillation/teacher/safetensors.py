"""Teacher from a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from lightning_optim.distillation.teacher.file import FileTeacher
from lightning_optim.errors import ArtefactError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Safetensors(FileTeacher):
    """Teacher from a ``.safetensors`` file, a format that cannot hold code. Arguments are ``FileTeacher``'s."""

    @override
    def read(self, path: Path) -> Mapping[str, Tensor]:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            raise ArtefactError(
                f"{path} is truncated or no safetensors file ({size} bytes); copy or save it again"
            ) from error
