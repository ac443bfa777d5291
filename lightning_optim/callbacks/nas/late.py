"""Hooks in which a module may build layers of its own, after a callback's setup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from lightning.pytorch import LightningModule


def late_hook(pl_module: LightningModule) -> str | None:
    """The last hook in which the module may build layers of its own."""
    for hook in ("configure_model", "setup"):
        if getattr(type(pl_module), hook) is not getattr(LightningModule, hook):
            return hook
    return None


@final
class Afterwards:
    """Wrapper of a hook: lets the module build its layers there, and then does something with them.

    Args:
        then: What is done.
    """

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the hook, and then the rest."""
        result = original(*args, **kwargs)
        self._then()
        return result
