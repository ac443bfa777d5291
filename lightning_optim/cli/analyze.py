"""``lightning-optim analyze``: what could be pruned, before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lightning_optim.atomic import write_atomic
from lightning_optim.cli.build import ConfigError, build, build_data, build_module
from lightning_optim.cli.compress import quieten
from lightning_optim.recipe.analysis import analyze_network
from lightning_optim.recipe.determinism import seed_everything
from lightning_optim.recipe.progress import CountedProgress
from lightning_optim.recipe.weights import load_trained
from lightning_optim.report.analysis import print_analysis, render_analysis

_WRITTEN = ("analyze.json", "analyze.html")


def analyze(config: DictConfig, folder: Path) -> float:
    """Analyze the network of ``config`` and leave ``analyze.json`` and ``analyze.html`` in ``folder``.

    Returns:
        The metric of the network as it is.

    Raises:
        ConfigError: If the folder holds an analysis, or a value is of the wrong kind.
        LightningOptimError: Whatever else is wrong, before anything is written.
    """
    quieten()
    console = Console()
    _check(config, folder)
    seed_everything(config.seed, "model")
    module, data = build_module(config.model), build_data(config.data)
    load_trained(module, config.weights)
    with CountedProgress("changing one part at a time", console) as progress:
        analysis = analyze_network(
            module,
            data,
            _trainer(config.trainer),
            criterion=build(config.criterion),
            targets=build(config.targets),
            sparsities=[float(value) for value in config.sparsities],
            metric=config.metric,
            mode=config.mode,
            network=config.network,
            bits=[int(value) for value in config.bits],
            tell=progress.advance,
        )
    page = render_analysis(analysis)
    write_atomic(folder / "analyze.json", (json.dumps(analysis.to_dict(), indent=2) + "\n").encode())
    write_atomic(folder / "analyze.html", page.encode())
    print_analysis(analysis, console)
    console.print(f"page: {folder / 'analyze.html'}   figures: {folder / 'analyze.json'}")
    return analysis.sensitivity.base


def _check(config: DictConfig, folder: Path) -> None:
    if OmegaConf.is_missing(config, "weights"):
        raise ConfigError("weights= must name trained weights: a checkpoint, a safetensors file or a stage's folder")
    if not OmegaConf.is_list(config.sparsities):
        raise ConfigError(f"sparsities must be a list, such as [0.3,0.6], got {config.sparsities!r}")
    if not OmegaConf.is_list(config.bits) or not all(isinstance(width, int) for width in config.bits):
        raise ConfigError(f"bits must be a list of whole numbers, such as [2,4,8], or [], got {config.bits!r}")
    if config.trainer.get("devices") != 1:
        raise ConfigError(f"an analysis runs on one device, got trainer.devices={config.trainer.get('devices')}")
    in_the_way = [name for name in _WRITTEN if (folder / name).exists()]
    if in_the_way:
        raise ConfigError(f"{folder} holds {in_the_way[0]!r} already; choose another folder")


def _trainer(config: Any) -> Trainer:
    trainer: Trainer = build(
        config, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False
    )
    return trainer
