"""The widespread Lightning + Hydra template: each callback by configuration, beside the checkpoints that it keeps."""

import importlib
import sys
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from clients.counting import Products, parameters_of, zeros_of
from support import run_script

TEMPLATE = Path(__file__).with_name("hydra_template")
FULL = 16 * 32 + 32 + 32 * 24 + 24 + 24 * 4 + 4 + 2 * (32 + 24)
POINTS = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def template(monkeypatch, tmp_path):
    """The application as it is run: from its own folder, which its checkpoints name."""
    monkeypatch.setenv("PROJECT_OUTPUT", str(tmp_path))
    # The template keeps its network among the hyperparameters: it needs this itself since torch 2.6.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.syspath_prepend(str(TEMPLATE))
    yield
    GlobalHydra.instance().clear()
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]


@pytest.fixture
def train(tmp_path):
    """Train with words of the command line; returns metrics and objects, as the template's own function does."""
    entry = importlib.import_module("src.train")

    def run(*words, folder="run"):
        with hydra.initialize_config_dir(str(TEMPLATE / "configs"), version_base="1.3"):
            cfg = hydra.compose("train", [f"hydra.run.dir={tmp_path / folder}", *words], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            cfg.output_dir = str(tmp_path / folder)
            return entry.train(cfg)

    return run


def best(objects):
    return torch.load(objects["trainer"].checkpoint_callback.best_model_path, weights_only=False)


def distilled(teacher, hard_weight):
    return [
        "callbacks=[default,distillation_teacher]",
        f"callbacks.distillation_teacher.teacher.path={teacher}",
        f"callbacks.distillation_teacher.hard_weight={hard_weight}",
        "callbacks.distillation_teacher.weight=1.0",
        "callbacks.distillation_teacher.losses.soft_target.temperature=1.0",
    ]


def test_weights_are_pruned_in_the_file_that_is_tested(train):
    metrics, objects = train("callbacks=[default,pruning_scheduler]", "callbacks.pruning_scheduler.schedule.end=0.75")
    weights = [
        value for name, value in best(objects)["state_dict"].items() if name.endswith("weight") and value.ndim > 1
    ]
    share = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share == pytest.approx(0.75, abs=0.002)
    assert zeros_of(objects["model"]) == share
    assert 0.0 < metrics["test/acc"] <= 1.0


def test_channels_go_by_an_experiment_file_and_the_best_checkpoint_tests_and_resumes(train):
    _, objects = train("experiment=pruned")
    assert objects["model"].net.model[0].out_features == 16
    assert objects["model"].net.model[3].out_features == 12
    assert best(objects)["state_dict"]["net.model.0.weight"].shape == (16, 16)
    _, resumed = train("experiment=pruned", f"ckpt_path={objects['trainer'].checkpoint_callback.best_model_path}",
                       "trainer.max_epochs=8", folder="resumed")  # fmt: skip
    assert parameters_of(resumed["model"]) == parameters_of(objects["model"]) < 0.6 * FULL


def test_weights_are_rounded_when_the_module_is_tested(train):
    group = "callbacks.qat_fake_quant"
    _, objects = train("callbacks=[default,qat_fake_quant]", f"{group}.weight_quantizer.bits=3")
    with Products(objects["model"], most=8) as products:
        objects["trainer"].test(objects["model"], datamodule=objects["trainer"].datamodule, verbose=False)
    assert products.few == products.all > 0


def test_a_checkpoint_of_the_template_is_a_teacher(train, tmp_path):
    _, teacher = train("callbacks=default", folder="teacher")
    path = teacher["trainer"].checkpoint_callback.best_model_path
    words = distilled(path, hard_weight=0.0)
    _, student = train(*words, "seed=8", "trainer.max_epochs=20", folder="student")
    _, alone = train("callbacks=default", "seed=8", "trainer.max_epochs=20", folder="alone")
    outputs = [each["model"].eval().net(POINTS).log_softmax(-1).detach() for each in (teacher, student, alone)]
    distance = [torch.nn.functional.kl_div(each, outputs[0], log_target=True) for each in outputs[1:]]
    assert distance[0] < 0.5 * distance[1]


def test_a_supernet_trains_and_is_searched_by_an_experiment_file(train):
    _, objects = train("experiment=searched", "test=false")
    (search,) = (each for each in objects["callbacks"] if type(each).__name__ == "NASSupernet")
    small = search.extract(objects["model"])
    assert small.net.model[0].out_features == (16, 32)[search.result.pick.architecture["net.model.0:width"]]
    assert small.net.model[3].in_features == small.net.model[0].out_features
    assert small.net(POINTS).shape == (64, 4)


def test_a_ready_made_space_is_searched_by_its_name(train):
    _, objects = train("experiment=ready_made", "test=false", "trainer.max_epochs=1")
    (search,) = (each for each in objects["callbacks"] if type(each).__name__ == "NASSupernet")
    pick = search.supernet.space.options_of(search.result.pick.architecture)
    small = search.extract(objects["model"])
    assert [len(stage) for stage in small.net.stages] == [int(pick[f"net.stages.{place}:depth"]) for place in (0, 1)]
    assert small.net(POINTS.view(-1, 1, 4, 4)).shape == (64, 4)


def test_the_command_line_adds_a_callback_to_the_applications_own(tmp_path):
    words = ["callbacks=[default,pruning_scheduler]", "callbacks.pruning_scheduler.schedule.end=0.5"]
    run_script(TEMPLATE / "src" / "train.py", *words, "trainer.max_epochs=2", cwd=tmp_path)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    weight = state["net.model.0.weight"]
    assert abs(int((weight == 0).sum()) / weight.numel() - 0.5) < 0.01
