"""Lightning callbacks that make a model small and fast, with the evidence.

The front door is lazy: Hydra imports this package in every application of the environment, and must not pay for torch.
What it offers stands in ``__init__.pyi``, here and in each package below; file paths below the packages are private.
"""

from pathlib import Path
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# A wheel carries conf/ inside the package; a source checkout keeps it one level up.
_here = Path(__file__).resolve().parent
if not (_here / "conf").is_dir() and (_here.parent / "conf" / "__init__.py").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _attribute(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
