"""Report on disk: JSON for programs, HTML for people."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_optim.atomic import write_atomic
from lightning_optim.report.page import render_page
from lightning_optim.report.result import Report


def write_report(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html``, each whole or not at all.

    Returns:
        The two paths.
    """
    page = render_page(report)  # before the first file is touched
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return (
        write_atomic(Path(folder, "report.json"), text.encode()),
        write_atomic(Path(folder, "report.html"), page.encode()),
    )
