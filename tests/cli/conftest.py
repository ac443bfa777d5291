import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from lightning_optim.cli.main import main


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Call ``lightning-optim`` with some words, in an empty folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}

    def run(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["lightning-optim", *words])
        capsys.readouterr()
        GlobalHydra.instance().clear()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    yield run
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def contents(tmp_path):
    """What lies in that folder: names and bytes."""

    def read() -> dict[str, bytes | None]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else None
            for path in sorted(Path(tmp_path).rglob("*"))
        }

    return read


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write ``mine.py``, a project's own module, into a folder that no path leads to; returns the folder."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(text: str) -> Path:
        (tmp_path / "mine.py").write_text(text)
        return tmp_path

    yield write
    sys.modules.pop("mine", None)
