"""Callbacks for an unmodified script, named in an environment variable.

``LIGHTNING_OPTIM=experiment.yaml python train.py`` adds the callbacks of that file to every Trainer of the
script, in each of its processes: Lightning asks every installed package for such a factory.
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

_added: WeakSet[Any] = WeakSet()


def callbacks() -> list[Any]:
    """Callbacks named by the file in ``LIGHTNING_OPTIM``; none if the variable is not set.

    A list of callbacks that a script gives to a second Trainer holds those of the first already: they serve both.
    """
    path = os.environ.get("LIGHTNING_OPTIM")
    if not path:
        return []
    from lightning_optim.callbacks.trainer.lightning_private import callbacks_of_new_trainer
    from lightning_optim.cli.build import callbacks_from_file

    if any(callback in _added for callback in callbacks_of_new_trainer()):
        return []
    found = callbacks_from_file(path)
    _added.update(found)
    return found
