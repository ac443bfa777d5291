"""Callbacks for an unmodified script, named in an environment variable.

``LIGHTNING_OPTIM=experiment.yaml python train.py`` adds the callbacks of that file to every Trainer of the
script, in each of its processes: Lightning asks every installed package for such a factory.
"""

from __future__ import annotations

import os
from typing import Any


def callbacks() -> list[Any]:
    """Callbacks named by the file in ``LIGHTNING_OPTIM``; none if the variable is not set."""
    path = os.environ.get("LIGHTNING_OPTIM")
    if not path:
        return []
    from lightning_optim.cli.build import callbacks_from_file

    return callbacks_from_file(path)
