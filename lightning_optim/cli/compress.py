"""Main job: from a configuration to a compressed model and its report."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from lightning_optim.atomic import write_atomic
from lightning_optim.checked import check_type
from lightning_optim.cli.build import ConfigError, build, build_callbacks, build_data, build_module
from lightning_optim.export.fallbacks import Fallbacks, check_fallbacks
from lightning_optim.export.onnx_file.integer_speed import measure_integer_speed
from lightning_optim.export.onnx_file.open_shapes import OpenShapes
from lightning_optim.recipe.progress import Heartbeat
from lightning_optim.recipe.rehearsal import rehearse
from lightning_optim.recipe.run import Recipe
from lightning_optim.recipe.stage import Artefacts, Stage, is_first_process
from lightning_optim.recipe.summary import summarize
from lightning_optim.report.table import print_table

_WRITTEN = ("stages", "model.onnx", "report.json", "report.html")
_ARTEFACT = re.compile(r"\$\{artefact:([^}]+)\}")


def compress(config: DictConfig, folder: Path) -> float:
    """Run the recipe of ``config`` in ``folder``, or go on with it, and write the report.

    Returns:
        Test accuracy of the last stage, in ``[0, 1]``.

    Raises:
        ConfigError: If the folder holds another run, or files that would be written over.
        LightningOptimError: If a stage refuses its settings or files; in a new run before anything is written.
    """
    quieten()
    console = Console()
    recipe, deployment = build_recipe(config, folder, console), build(config.deploy)
    if _is_new(config, folder):
        with Heartbeat("rehearsing every stage", console, is_shown=is_first_process()):
            rehearse(recipe)
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config).encode())
    if is_first_process() and any(stage.kind == "qat" for stage in recipe.stages):
        with Heartbeat("timing integer kernels", console):
            speed = measure_integer_speed()
        console.print(str(speed), highlight=False)
    finished = recipe.run()
    if not is_first_process():
        return finished[-1].result.test_accuracy
    with Heartbeat("timing every stage's file", console):
        report = summarize(finished, folder, config.latency_seconds, deployment, recipe.batch)
    print_table(report, console)
    model = folder / ("model.onnx" if (folder / "model.onnx").is_file() else report.deployed.file)
    console.print(f"page: {folder / 'report.html'}   figures: {folder / 'report.json'}", highlight=False)
    console.print(f"model: {model} ({report.deployed.name})", highlight=False)
    return finished[-1].result.test_accuracy


def quieten() -> None:
    """Keep a Trainer's messages, repeated for every stage, off the terminal; errors still show."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")


def _is_new(config: DictConfig, folder: Path) -> bool:
    """Whether a run begins in the folder; it must then hold nothing that the run would write over."""
    kept = folder / "config.yaml"
    if not kept.is_file():
        in_the_way = [name for name in _WRITTEN if (folder / name).exists()]
        if in_the_way:
            raise ConfigError(f"{folder} holds {in_the_way[0]!r} but is no run; choose another folder")
        return True
    if kept.read_text() != OmegaConf.to_yaml(config):
        raise ConfigError(
            f"{folder} holds a run of another configuration; choose another folder, or go on with run={folder}"
        )
    return False


def _check(config: DictConfig) -> None:
    """Refuse values that no class would refuse before the run is over."""
    if not isinstance(config.seed, int):
        raise ConfigError(f"seed must be a whole number, got {config.seed!r}")
    if not isinstance(config.latency_seconds, int | float) or not config.latency_seconds > 0:
        raise ConfigError(f"latency_seconds must be above 0, got {config.latency_seconds!r}")
    if not isinstance(config.recipe.order, Sequence) or isinstance(config.recipe.order, str):
        raise ConfigError(f"recipe.order must be a list of stages, such as [base,export], got {config.recipe.order!r}")


def build_recipe(config: DictConfig, folder: Path, console: Console) -> Recipe:
    """Build what ``config`` describes; callbacks are built when their stage begins.

    Raises:
        ConfigError: If a value is missing or of the wrong kind.
    """
    _check(config)
    names = list(config.recipe.order)
    missing = [name for name in names if name not in config.recipe.stages]
    if missing:
        raise ConfigError(f"recipe.order names {missing[0]!r}, but the stages are {list(config.recipe.stages)}")
    return Recipe(
        stages=[_stage(name, config.recipe.stages[name], config.trainer) for name in names],
        make_module=partial(build_module, config.model),
        data=build_data(config.data),
        folder=folder,
        seed=config.seed,
        network=config.network,
        metrics=build(config.metrics),
        fallbacks=_fallbacks(config.recipe),
        **_shapes(config.recipe),
        console=console,
    )


def _fallbacks(config: DictConfig) -> Fallbacks:
    given = config.get("fallbacks", "named")
    fallbacks = list(given) if OmegaConf.is_list(given) else given
    try:
        check_fallbacks(fallbacks)
    except ValueError as error:
        raise ConfigError(f"recipe.{error}") from error
    return fallbacks


def _shapes(config: DictConfig) -> dict[str, Any]:
    given = OmegaConf.to_container(config, resolve=False)
    dynamic, batch = given.get("dynamic") or {}, given.get("batch")  # type: ignore[union-attr]  # a mapping
    try:
        check_type("dynamic", dynamic, Mapping[str, Mapping[Any, str]])
        check_type("batch", batch, int | None)
        # Hydra's +recipe.dynamic.images.2=height gives the dimension as a string.
        numbers = {name: {_whole(dim): word for dim, word in dims.items()} for name, dims in dynamic.items()}
        OpenShapes(dynamic=numbers, batch=batch)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"recipe.{error}") from error
    return {"dynamic": numbers, "batch": batch}


def _whole(dim: Any) -> Any:
    return int(dim) if isinstance(dim, str) and dim.isdecimal() else dim


def _stage(name: str, config: DictConfig, trainer: DictConfig) -> Stage:
    written = OmegaConf.to_container(config, resolve=False)
    missing = next(_keys_without_value(written), None)
    if missing is not None:
        raise ConfigError(f"stage {name!r} needs a value for recipe.stages.{name}.{missing}, got none; give it one")
    return Stage(
        name=name,
        kind=config.kind,
        make_trainer=partial(_make_trainer, {**trainer, **(config.get("trainer") or {})}),
        make_callbacks=partial(_make_callbacks, config.get("callbacks") or {}),
        settings=OmegaConf.to_container(config.get("settings") or OmegaConf.create(), resolve=True),  # type: ignore[arg-type]
        needs=_ARTEFACT.findall(str(written)),
        weights=config.get("weights", "scratch"),
        trial_epochs=config.get("trial_epochs"),
    )


def _keys_without_value(node: Any) -> Iterator[str]:
    """Keys whose value an option leaves to the user, joined by dots."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if value == "???":
            yield str(key)
        yield from (f"{key}.{inner}" for inner in _keys_without_value(value))


def _make_trainer(config: Any, **keywords: Any) -> Trainer:
    trainer: Trainer = build(config, _partial_=True)(**keywords)
    return trainer


def _make_callbacks(config: Any, artefacts: Artefacts) -> Sequence[Callback]:
    return build_callbacks(_with_artefacts(config, artefacts))


def _with_artefacts(node: Any, artefacts: Artefacts) -> Any:
    """Plain data: ``${artefact:NAME}`` becomes the network of that stage, any other interpolation its value."""
    if isinstance(node, DictConfig):
        return {key: _with_artefacts(_raw(node, key), artefacts) for key in node}
    if isinstance(node, Mapping):
        return {key: _with_artefacts(value, artefacts) for key, value in node.items()}
    if isinstance(node, ListConfig):
        return [_with_artefacts(_raw(node, place), artefacts) for place in range(len(node))]
    found = _ARTEFACT.fullmatch(node) if isinstance(node, str) else None
    if found:
        return artefacts(found[1])
    return node


def _raw(node: DictConfig | ListConfig, key: Any) -> Any:
    """A value as it was written if it names an artefact, else resolved."""
    if OmegaConf.is_interpolation(node, key):
        raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]  # a mapping
        if isinstance(raw, str) and _ARTEFACT.fullmatch(raw):
            return raw
    return node[key]
