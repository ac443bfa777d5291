"""``lightning-optim``: choose what to run before Hydra starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_EXTRAS = {"sklearn": "demo", "onnx": "export", "onnxscript": "export", "onnxruntime": "export", "matplotlib": "report"}


def main() -> None:
    """Entry point of the console script and of ``python -m lightning_optim``."""
    words = sys.argv[1:]
    if words and words[0] in ("-h", "--help"):
        from lightning_optim.cli.help import print_help

        print_help()
        return
    if words and words[0] == "--version":
        from lightning_optim import __version__

        print(f"lightning-optim {__version__}")  # the answer
        return
    if words and words[0] == "compress":
        del sys.argv[1]  # the default: a rank that is started from sys.argv runs it all the same
    elif words and "=" not in words[0] and not words[0].startswith("-"):
        _fail(f"no sub-command is named {words[0]!r}; there is 'compress', which also runs without a word")
    _check_extras()
    runs = [word.removeprefix("run=") for word in sys.argv[1:] if word.startswith("run=")]
    if runs:
        _resume(runs[-1], [word for word in sys.argv[1:] if not word.startswith("run=")])
    else:
        _compose_and_run()


def _check_extras() -> None:
    from importlib.util import find_spec

    missing = sorted({extra for module, extra in _EXTRAS.items() if find_spec(module) is None})
    if missing:
        _fail(f"the main job needs more packages: pip install 'lightning-optim[{','.join(missing)}]'")


def _resume(folder: str, others: list[str]) -> None:
    kept = Path(folder) / "config.yaml"
    overrides = [word for word in others if not word.startswith("hydra.")]
    if overrides:
        _fail(f"run= goes on with the run as it was configured, so it takes no {overrides[0]!r}")
    if not kept.is_file():
        _fail(f"{folder} is no run: it has no config.yaml; name a folder that lightning-optim has written")
    from omegaconf import DictConfig, OmegaConf

    from lightning_optim.cli.compress import compress

    def go_on() -> float:
        config = OmegaConf.load(kept)
        assert isinstance(config, DictConfig)
        return compress(config, Path(folder))

    _in_one_line(go_on)


def _compose_and_run() -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    def job(config: DictConfig) -> float:
        from lightning_optim.cli.compress import compress

        folder = Path(HydraConfig.get().runtime.output_dir)
        return _in_one_line(lambda: compress(config, folder), empty=folder)

    hydra.main(version_base="1.3", config_path="pkg://lightning_optim.conf.lightning_optim", config_name="compress")(
        job
    )()


def _in_one_line(job: Callable[[], float], empty: Path | None = None) -> float:
    """Run a job; what a caller can mend is told in one line."""
    from lightning_optim.errors import LightningOptimError

    if os.environ.get("HYDRA_FULL_ERROR"):
        return job()
    try:
        return job()
    except (LightningOptimError, ValueError, TypeError) as error:
        if empty is not None and not any(empty.iterdir()):
            empty.rmdir()
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        _fail("interrupted; go on with run=<folder>")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)  # the answer
    raise SystemExit(1)
