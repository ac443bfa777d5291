"""Building of objects from configuration: no other file instantiates anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.errors import InstantiationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_optim.errors import LightningOptimError, reason_of

Kind = TypeVar("Kind", LightningModule, LightningDataModule)

_RUN_KEYS = ("recipe", "model", "data", "trainer", "metrics", "network", "seed", "latency_seconds", "deploy")


class ConfigError(LightningOptimError, ValueError):
    """A configuration names what is not there, or a class refuses its values."""


def build(config: Any, **keywords: Any) -> Any:
    """Build what ``config`` describes by its ``_target_``.

    Args:
        config: A node with ``_target_``.
        keywords: Further keyword arguments of the target.

    Raises:
        LightningOptimError: If the target does not exist or refuses its values, in one line.
    """
    try:
        return hydra.utils.instantiate(config, _convert_="all", **keywords)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, LightningOptimError):
            raise cause from error
        where = next((line.split(":", 1)[1].strip() for line in str(error).splitlines() if "full_key" in line), "")
        raise ConfigError(f"{where or 'configuration'}: {_reason(error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(reason_of(error)) from error


def build_module(config: Any) -> LightningModule:
    """Build the LightningModule of ``model``.

    Raises:
        ConfigError: If no class is named, or it is none of LightningModules.
    """
    return _of_kind(config, LightningModule, "model")


def build_data(config: Any) -> LightningDataModule:
    """Build the LightningDataModule of ``data``.

    Raises:
        ConfigError: If no class is named, or it is none of LightningDataModules.
    """
    return _of_kind(config, LightningDataModule, "data")


def _of_kind(config: Any, kind: type[Kind], group: str) -> Kind:
    if OmegaConf.is_missing(config, "_target_"):
        raise ConfigError(
            f"{group}=custom needs your {kind.__name__}: {group}._target_=FILE.CLASS, and +{group}.KEY=VALUE for its "
            "keywords"
        )
    built = build(config)
    if not isinstance(built, kind):
        raise ConfigError(
            f"{group}._target_ must name a {kind.__name__} of lightning.pytorch, got {config._target_}, which makes "
            f"a {type(built).__name__}"
        )
    return built


def build_callbacks(config: Mapping[str, Any] | None) -> list[Callback]:
    """Build the callbacks of a node, in order: entries with a ``_target_``, and those of the groups among them.

    An entry that is ``None`` was taken out.

    Raises:
        ConfigError: If an entry is neither a callback nor a group of them.
    """
    callbacks: list[Callback] = []
    for name, node in (config or {}).items():
        if isinstance(node, Mapping):
            callbacks.extend([build(node)] if "_target_" in node else build_callbacks(node))
        elif node is not None:
            raise ConfigError(f"callbacks: {name} must be a node with a _target_, or null, got {node!r}")
    return callbacks


def callbacks_from_file(path: str | Path) -> list[Callback]:
    """Build the callbacks of a YAML file: one node per callback, each with its ``_target_``.

    Raises:
        ConfigError: If the file is missing or holds no callback.
    """
    if not Path(path).is_file():
        raise ConfigError(f"no callbacks file at {path}")
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} must map names to callbacks")
    callbacks = build_callbacks(config.get("callbacks", config))
    if not callbacks:
        raise ConfigError(f"{path} holds no callback: no entry has a _target_")
    return callbacks


def read_run(path: Path) -> DictConfig:
    """Read the configuration that a run has left in its folder.

    Raises:
        ConfigError: If the file is no such configuration.
    """
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({reason_of(error)}); is {path.parent} a run?") from error
    missing = [name for name in _RUN_KEYS if not isinstance(config, DictConfig) or name not in config]
    if not isinstance(config, DictConfig) or missing:
        raise ConfigError(
            f"{path.parent} is no run: its config.yaml has no {missing[0]!r}; "
            "name a folder that lightning-optim has written"
        )
    return config


def _reason(error: InstantiationException) -> str:
    cause = error.__cause__
    if cause is None:
        return " ".join(line for line in str(error).splitlines() if "full_key" not in line)
    lines = str(cause).strip().splitlines()[:2]  # the second says why a target cannot be loaded
    if "ModuleNotFoundError" in lines[-1]:
        lines.append(f"(looked in {Path.cwd()} and among the installed packages)")
    return " ".join(lines) or type(cause).__name__
