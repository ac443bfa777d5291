"""Whatever distillation can be told, a recipe's stage can be told on the command line."""

import csv
import re
from io import StringIO
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

import lightning_optim.conf
from lightning_optim.cli.build import ConfigError
from lightning_optim.cli.compress import build_recipe
from lightning_optim.distillation import AnswerCache, FromBatch, ModuleTeacher, Resize, SoftTarget
from lightning_optim.errors import LightningOptimError
from lightning_optim.report import read_report

GROUP = "lightning_optim/distillation"
FOLDER = Path(lightning_optim.conf.__path__[0]) / GROUP
DISTIL, QAT = (f"recipe.stages.{name}.callbacks.distillation_teacher" for name in ("distil", "qat"))
NET = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 3}
# What a teacher cannot do without.
NEEDED = {
    "checkpoint": {"path": "teacher.ckpt"},
    "exported": {"program": {"_target_": "support.exported_classifier"}},
    "hugging_face": {"model": "folder"},
    "module": {"module": NET},
    "onnx_file": {"path": "teacher.onnx"},
    "peer": {"module": NET},
    "safetensors": {"path": "teacher.safetensors"},
    "several": {"teachers": {"one": {"_target_": "lightning_optim.distillation.EMA"}}},
}


def leaves(family):
    return sorted(path.stem for path in (FOLDER / family).glob("*.yaml"))


def composed(*words):
    with initialize_config_module("lightning_optim.conf.lightning_optim", version_base="1.3"):
        return compose("compress", overrides=["recipe.order=[base,distil,qat]", *words])


def stages_of(config):
    return build_recipe(config, Path("nowhere"), Console(file=StringIO())).stages


def callback_of(stage, network=None):
    """The callback that distils in a stage, where every artefact is ``network``."""
    made = stage.make_callbacks(lambda _: network or nn.Linear(4, 3))
    return next(each for each in made if type(each).__name__ == "DistillationTeacher")


PAIRS = [(leaves("teacher")[place - 1], leaf) for place, leaf in enumerate(leaves("teacher")) if place % 2]


@pytest.mark.parametrize(("in_distil", "in_qat"), [*PAIRS, (leaves("teacher")[-1], "ema")])
def test_each_teacher_is_chosen_by_name_and_says_what_it_needs(in_distil, in_qat):
    chosen = {DISTIL: in_distil, QAT: in_qat}
    config = composed(*(f"{GROUP}/teacher@{place}.teacher={leaf}" for place, leaf in chosen.items()))
    for place, leaf in chosen.items():
        for key, value in NEEDED.get(leaf, {}).items():
            with pytest.raises(ConfigError, match=rf"needs a value for {re.escape(place)}\.teacher\.{key}, got none"):
                stages_of(config)
            OmegaConf.update(config, f"{place}.teacher.{key}", value)
    for stage, place in zip(stages_of(config)[1:], chosen, strict=True):
        target = OmegaConf.select(config, f"{place}.teacher._target_")
        assert type(callback_of(stage).teacher).__name__ == target.rpartition(".")[2]
        assert stage.needs == (["base"] if chosen[place] == "artefact" else [])


def test_the_teacher_is_the_base_where_none_is_chosen():
    network = nn.Linear(4, 3)
    for stage in stages_of(composed())[1:]:
        found = callback_of(stage, network)
        assert stage.needs == ["base"]
        assert isinstance(found.teacher, ModuleTeacher)
        assert (found.teacher.module.weight == network.weight).all()
        assert (found.losses, found.weight) == ({"soft_target": SoftTarget()}, {"soft_target": 0.7})
        assert found.hard_weight == 0.3


@pytest.mark.parametrize("program", ["teacher.pt2", "3"])
def test_a_program_that_is_no_object_is_refused_with_the_reason(program):
    config = composed(f"{GROUP}/teacher@{DISTIL}.teacher=exported", f"{DISTIL}.teacher.program={program}")
    with pytest.raises(LightningOptimError, match=r"program must be an ExportedProgram, got (str|int)"):
        callback_of(stages_of(config)[1])


def test_all_losses_stand_by_keys_of_their_own_in_place_of_soft_targets():
    keys = {f"by_{leaf}": leaf for leaf in leaves("loss")}
    config = composed(
        f"~{GROUP}/loss@{DISTIL}.losses.soft_target",
        *(f"+{GROUP}/loss@{DISTIL}.losses.{key}={leaf}" for key, leaf in keys.items()),
        f"{DISTIL}.weight={{{', '.join(f'{key}: {place}.5' for place, key in enumerate(keys))}}}",
    )
    losses = OmegaConf.select(config, f"{DISTIL}.losses")
    for key in keys:
        if OmegaConf.is_missing(losses[key], "student"):
            with pytest.raises(ConfigError, match=rf"needs a value for {re.escape(DISTIL)}\.losses\.{key}\.student"):
                stages_of(config)
            losses[key].student = "net.stem"
    found = callback_of(stages_of(config)[1])
    assert {key: type(loss).__name__ for key, loss in found.losses.items()} == {
        key: losses[key]._target_.rpartition(".")[2] for key in keys
    }
    assert found.weight == {key: place + 0.5 for place, key in enumerate(keys)}


@pytest.mark.parametrize(
    ("words", "what", "setting"),
    [
        ([f"{GROUP}/cache@{DISTIL}.cache=answer_cache", f"{DISTIL}.cache.folder=answers"], "cache", AnswerCache),
        (
            [f"+{GROUP}/input_map@{DISTIL}.teacher.input_map=resize", f"{DISTIL}.teacher.input_map.size=8"],
            "teacher.input_map",
            Resize,
        ),
        (
            [f"+{GROUP}/input_map@{DISTIL}.teacher.input_map=from_batch", f"{DISTIL}.teacher.input_map.keys=[0]"],
            "teacher.input_map",
            FromBatch,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cache_and_an_input_map_are_chosen_by_name_beside_the_teacher(words, what, setting):
    with pytest.raises(ConfigError, match=rf"needs a value for {re.escape(DISTIL)}\.{what}"):
        stages_of(composed(words[0]))
    found = callback_of(stages_of(composed(*words))[1])
    for name in what.split("."):
        found = getattr(found, name)
    assert isinstance(found, setting)


def test_every_cache_and_input_map_is_tried():
    assert leaves("cache") == ["answer_cache"]
    assert leaves("input_map") == ["from_batch", "resize"]


def test_layers_to_begin_from_and_the_network_of_another_stage_are_named():
    config = composed(
        f"{DISTIL}.initialize_from={{net.layer.*: layer.*}}",
        f"{QAT}.teacher.module=${{artefact:distil}}",
    )
    stages = stages_of(config)
    assert callback_of(stages[1]).initialize_from == {"net.layer.*": "layer.*"}
    assert stages[2].needs == ["distil"]


def test_a_network_of_a_stage_stands_in_a_list_too():
    config = composed(
        f"{GROUP}/teacher@{DISTIL}.teacher=module",
        f"{DISTIL}.teacher.module={{_target_: torch.nn.Sequential, _args_: ['${{artefact:base}}']}}",
    )
    network = nn.Linear(4, 3)
    (inner,) = callback_of(stages_of(config)[1], network).teacher.module
    assert (inner.weight == network.weight).all()


MINE = """
import csv

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_teacher():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.lr, self.net = 0.01, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.seen = loss.item()
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.train_dataloader().dataset, batch_size=8)

    test_dataloader = val_dataloader


class Spy(Callback):
    # Writes what the module has computed, what is logged, and what Lightning was given to train with.

    def __init__(self, path):
        self.path = path

    def on_fit_start(self, trainer, pl_module):
        self.rows = [["task", "distillation/answers", "distillation/hidden", "total", "lr"]]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = [trainer.callback_metrics.get(name, torch.nan) for name in self.rows[0][1:3]]
        (rate,) = (group["lr"] for group in trainer.optimizers[0].param_groups)
        self.rows.append([pl_module.seen, *map(float, logged), outputs["loss"].item(), rate])
        with open(self.path, "w") as file:
            csv.writer(file).writerows(self.rows)
"""


@pytest.fixture
def project(own_module):
    """A folder with a project's own module, data and teacher."""
    return own_module(MINE)


def columns(path):
    with path.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return {name: [row[name] for row in rows] for name in rows[0]}


WORDS = (
    *("model._target_=mine.Module", "data._target_=mine.Data", "recipe.order=[distil,finetune]"),
    *("recipe.stages.distil.trainer.max_epochs=3", "recipe.stages.finetune.trainer.max_epochs=2"),
    "+recipe.stages.finetune.settings.lr=1e-3",
    *(
        f"+recipe.stages.{name}.callbacks.spy={{_target_: mine.Spy, path: {name}.csv}}"
        for name in ("distil", "finetune")
    ),
    *(f"{GROUP}/teacher@{DISTIL}.teacher=module", f"{DISTIL}.teacher.module={{_target_: mine.make_teacher}}"),
    f"~{GROUP}/loss@{DISTIL}.losses.soft_target",
    f"+{GROUP}/loss@{DISTIL}.losses.answers=mean_squared_error",
    *(f"+{GROUP}/loss@{DISTIL}.losses.hidden=hint", f"{DISTIL}.losses.hidden.student=net.1"),
    *(f"{DISTIL}.weight={{answers: 2.0, hidden: 0.5}}", f"{DISTIL}.hard_weight=0.3"),
    *("latency_seconds=0.05", "hydra.run.dir=run"),
)


@pytest.mark.filterwarnings("ignore")
def test_the_curves_of_a_distilled_and_finetuned_student_are_what_its_steps_were_trained_with(call, project):
    answer = call(*WORDS)
    assert answer.code == 0, answer.err
    report = read_report(project / "run" / "report.json")
    assert [stage.name for stage in report.stages] == list(report.losses) == ["distil", "finetune"]

    seen, curves = columns(project / "distil.csv"), report.losses["distil"]
    assert list(curves.batches) == list(range(1, 13))
    assert set(curves.values) == {"task", "distillation/answers", "distillation/hidden", "total"}
    for name, curve in curves.values.items():
        assert curve == pytest.approx(seen[name], rel=1e-6), name
    weighed = zip(seen["task"], seen["distillation/answers"], seen["distillation/hidden"], strict=True)
    assert curves.values["total"] == pytest.approx([0.3 * a + 2.0 * b + 0.5 * c for a, b, c in weighed], rel=1e-5)

    seen, curves = columns(project / "finetune.csv"), report.losses["finetune"]
    assert list(curves.values) == ["task", "total"]
    assert curves.values["task"] == curves.values["total"] == pytest.approx(seen["task"], rel=1e-6)
    assert seen["lr"] == [1e-3] * 8

    page = (project / "run" / "report.html").read_text()
    assert "Losses of every stage" in page
    assert {"distillation/answers, unweighted", "total, weighted"} <= set(re.findall(r">([^<>]+)</text>", page))
