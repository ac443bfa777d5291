"""Teacher from a checkpoint of Lightning or of plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.teacher.file import FileTeacher
from lightning_optim.surgery.weights import read_plain, weights_in


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(FileTeacher):
    """Teacher from a checkpoint: a ``.ckpt`` of Lightning or a saved ``state_dict``. Code in it is never run.

    A ``.ckpt`` that pickles its network among the hyperparameters, as the Lightning-Hydra template's does, is read for
    its weights alone: neither the network's class nor anything else that the file names is imported or called.

    Arguments are ``FileTeacher``'s.
    """

    @override
    def read(self, path: Path) -> Mapping[str, Tensor]:
        return weights_in(read_plain(path, "checkpoint"), path)
