"""Results by name, kept in a file if one is given: a study that was stopped goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from lightning_optim.atomic import write_atomic


@final
class Kept:
    """Results by name.

    Args:
        out: JSON file of what is done; ``None`` keeps it in memory.
        settings: What all results have alike, such as the number of images.

    Raises:
        ValueError: If the file holds results of other settings.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, Any] | None = None) -> None:
        self.out = out
        self.results: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
        known = self.results.setdefault("settings", dict(settings or {}))
        if known != dict(settings or {}):
            raise ValueError(f"{out} holds results of {known}, and not of {settings}: give another file")

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under a name, or is now."""
        if key not in self.results:
            self.results[key] = measure()
            if self.out is not None:
                write_atomic(self.out, json.dumps(self.results, indent=1).encode())
        return self.results[key]
