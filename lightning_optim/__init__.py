"""Lightning callbacks that make a model small and fast, with the evidence.

The front door is lazy: Hydra imports this package in every application of the environment, and must not pay for torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_optim.callbacks.distillation_teacher import DistillationTeacher as DistillationTeacher
    from lightning_optim.callbacks.nas_supernet import NASSupernet as NASSupernet
    from lightning_optim.callbacks.pruning_scheduler import PruningScheduler as PruningScheduler
    from lightning_optim.callbacks.qat_fake_quant import QATFakeQuant as QATFakeQuant

__version__ = "0.1.0"

__all__ = ["DistillationTeacher", "NASSupernet", "PruningScheduler", "QATFakeQuant", "__version__"]

_CALLBACKS = {
    "DistillationTeacher": "distillation_teacher",
    "NASSupernet": "nas_supernet",
    "PruningScheduler": "pruning_scheduler",
    "QATFakeQuant": "qat_fake_quant",
}

# A wheel carries conf/ inside the package; a source checkout keeps it one level up.
_here = Path(__file__).resolve().parent
if not (_here / "conf").is_dir() and (_here.parent / "conf" / "__init__.py").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name in _CALLBACKS:
        return getattr(importlib.import_module(f"lightning_optim.callbacks.{_CALLBACKS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
