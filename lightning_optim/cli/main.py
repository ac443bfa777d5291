"""``lightning-optim``: choose what to run before Hydra starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

_JOBS = {"analyze": "lightning_optim.cli.analyze", "compress": "lightning_optim.cli.compress"}
_EXTRAS = {"sklearn": "demo", "onnx": "export", "onnxscript": "export", "onnxruntime": "export", "matplotlib": "report"}


def main() -> None:
    """Entry point of the console script and of ``python -m lightning_optim``."""
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        from lightning_optim.cli.help import print_help

        print_help("analyze" if words[0] == "analyze" else "compress")
        return
    if words and words[0] == "--version":
        from lightning_optim import __version__

        print(f"lightning-optim {__version__}")  # the answer
        return
    name = "compress"
    if words and "=" not in words[0] and not words[0].startswith("-"):
        name = words[0]
        if name not in _JOBS:
            _fail(
                f"no sub-command is named {name!r}; there are 'analyze' and 'compress', which also runs without a word"
            )
        del sys.argv[1]  # Hydra takes no words; ranks are started for the default alone
    _check_extras()
    _choose_own_parts()
    runs = [word.removeprefix("run=") for word in sys.argv[1:] if word.startswith("run=")]
    if runs and name == "compress":
        _resume(runs[-1], [word for word in sys.argv[1:] if not word.startswith("run=")])
    else:
        _compose_and_run(name)


def _check_extras() -> None:
    from importlib.util import find_spec

    missing = sorted({extra for module, extra in _EXTRAS.items() if find_spec(module) is None})
    if missing:
        _fail(f"the main job needs more packages: pip install 'lightning-optim[{','.join(missing)}]'")


def _choose_own_parts() -> None:
    """Let ``model._target_=my.Module`` and ``data._target_=my.Data`` stand alone: the demo's keywords are not theirs.

    As where a script of the project is run, its folder is searched for what they name.
    """
    sys.path.insert(0, str(Path.cwd()))
    for group in ("model", "data"):
        own = [place for place, word in enumerate(sys.argv) if word.startswith(f"{group}._target_=")]
        if own and not any(word.startswith(f"{group}=") for word in sys.argv):
            sys.argv.insert(own[0], f"{group}=custom")


def _resume(folder: str, others: list[str]) -> None:
    overrides = [word for word in others if not word.startswith("hydra.")]  # with those a rank is started
    if overrides:
        _fail(f"run= goes on with the run as it was configured, so it takes no {overrides[0]!r}")
    kept = Path(folder) / "config.yaml"
    if not kept.is_file():
        _fail(f"{folder} is no run: it has no config.yaml; name a folder that lightning-optim has written")

    def go_on() -> float:
        from lightning_optim.cli.build import read_run
        from lightning_optim.cli.compress import compress

        return compress(read_run(kept), Path(folder))

    _in_one_line(go_on, Path(folder))


def _compose_and_run(name: str) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig

    def job(config: DictConfig) -> float:
        run: Callable[[DictConfig, Path], float] = getattr(import_module(_JOBS[name]), name)
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        try:
            return _in_one_line(lambda: run(config, folder), folder)
        except SystemExit as stop:
            if hydra_config.mode is RunMode.MULTIRUN and isinstance(stop.__context__, Exception):
                # An exception lets the launcher go on with the other runs, and end with this line and code 1.
                raise CompactHydraException(f"error: run {hydra_config.job.num} failed, see above") from None
            raise

    hydra.main(version_base="1.3", config_path="pkg://lightning_optim.conf.lightning_optim", config_name=name)(job)()


def _in_one_line(job: Callable[[], float], folder: Path) -> float:
    """Run a job; what a caller can mend is told in one line."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_optim.errors import LightningOptimError

    if os.environ.get("HYDRA_FULL_ERROR"):
        return job()
    try:
        return job()
    except LightningOptimError as error:
        _fail(_one_line(error))
    except (ValueError, TypeError, OSError, MisconfigurationException) as error:
        _fail(f"{_one_line(error)} (HYDRA_FULL_ERROR=1 shows where)")
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        has_begun = (folder / "config.yaml").is_file()
        _fail(f"interrupted; go on with run={folder}" if has_begun else "interrupted before anything was written")
    finally:
        _leave(folder)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _leave(folder: Path) -> None:
    """Remove the folder that Hydra made for a run, and those around it, as far as they are empty."""
    for place in (folder, folder.parent, folder.parent.parent):
        if place == Path.cwd() or not place.is_dir() or any(place.iterdir()):
            return
        place.rmdir()


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)  # the answer
    raise SystemExit(1)
