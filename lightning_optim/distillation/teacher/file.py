"""Teachers whose weights lie in a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.distillation.teacher.exported import NO_PT2
from lightning_optim.distillation.teacher.network import NetworkTeacher
from lightning_optim.errors import ArtefactError
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.weights import check_shapes, fit_names, load_fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTeacher(NetworkTeacher):
    """Teacher from a file: a network is filled with the weights in it.

    Args:
        precision: Number format of the teacher; see ``NetworkTeacher``.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.
        path: The file.
        architecture: The module that the weights belong to; ``None`` takes a copy of the student's network.
        prefix: What stands before the network's names in the file, such as ``"net."``; ``None`` finds it.
    """

    path: str | Path
    architecture: nn.Module | None = None
    prefix: str | None = None

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        path = Path(self.path).expanduser()
        if path.suffix == ".pt2":
            raise ArtefactError(f"{path}: {NO_PT2}")
        weights = self.read(path)
        module = copy_model(student()) if self.architecture is None else self.architecture
        advice = "give the teacher's own architecture or prefix"
        weights = fit_names(weights, module, path, advice=advice, prefix=self.prefix)
        check_shapes(weights, module, path, advice=advice)
        load_fitted(weights, module)
        return module

    @abstractmethod
    def read(self, path: Path) -> Mapping[str, Tensor]:
        """Return the weights of a file by their plain names.

        Raises:
            ArtefactError: If it is missing, truncated, unsafe, or holds no weights.
        """
