"""The wheel carries all that is needed, and opens to applications that know nothing of it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An application of somebody else, with groups of the same names as ours.
APP = {
    "conf/app.yaml": "defaults: [schedule: cosine, model: cubic, data: digits, pruning: magnitude, callbacks: default]",
    "conf/schedule/cosine.yaml": "whose: client\n",
    "conf/model/cubic.yaml": "whose: client\n",
    "conf/data/digits.yaml": "whose: client\n",
    "conf/pruning/magnitude.yaml": "whose: client\n",
    "conf/callbacks/default.yaml": "checkpoint: {_target_: lightning.pytorch.callbacks.ModelCheckpoint}\n",
    "app.py": """
import json, sys, hydra, lightning_optim
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

def compose(*words):
    return OmegaConf.to_container(hydra.compose("app", overrides=list(words)))

with hydra.initialize_config_dir(sys.argv[1], version_base="1.3"):
    loader = GlobalHydra.instance().config_loader()
    groups = ("schedule", "model", "data", "pruning", "callbacks", "task", "recipe")
    family = "lightning_optim/pruning/criterion@callbacks.pruning_scheduler.criterion"
    added = "callbacks=[default,pruning_scheduler]"
    print(json.dumps({
        "from": lightning_optim.__file__,
        "groups": {name: loader.get_group_options(name) for name in groups},
        "plain": compose(),
        "pruned": compose(added, "callbacks.pruning_scheduler.criterion.p=2"),
        "chosen": compose(added, family + "=mean_activation"),
        "heavy": sorted({"torch", "lightning"} & set(sys.modules)),
    }))
""",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh virtual environment with the wheel in it, and with the packages of this one behind it."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    python = place / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, capture_output=True)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, text=True)
    (site,) = place.glob("lib/python*/site-packages")
    others = next(path for path in sys.path if Path(path, "hydra").is_dir())
    (site / "others.pth").write_text(others)  # a path alone: .pth files that lie there are not read
    return python


@pytest.fixture(scope="session")
def application(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("application")
    for name, text in APP.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(python, code, folder, *words, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIGHTNING_OPTIM"))}
    command = [str(python), "-c", code, *words]
    environment = {**clean, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session", params=["wheel", "editable"])
def composed(request, application):
    python = request.getfixturevalue("installed") if request.param == "wheel" else sys.executable
    done = run(python, APP["app.py"], application, str(application / "conf"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["from"].startswith(str(ROOT)) == (request.param == "editable")
    return answer


def test_the_wheel_holds_configuration_style_sheet_types_and_plugin(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"lightning_optim/conf/{path.relative_to(ROOT / 'conf')}" in names
    assert {"lightning_optim/report/page.css", "lightning_optim/py.typed"} <= names
    assert "hydra_plugins/lightning_optim_searchpath.py" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "conf/", "lightning_optim/_hydra")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_foreign_application_adds_our_callback_beside_its_own(composed):
    callbacks = composed["pruned"]["callbacks"]
    assert callbacks["checkpoint"]["_target_"].endswith("ModelCheckpoint")
    assert callbacks["pruning_scheduler"]["_target_"].endswith("PruningScheduler")
    assert callbacks["pruning_scheduler"]["criterion"]["p"] == 2
    assert callbacks["pruning_scheduler"]["schedule"]["_target_"].endswith("Cubic")


def test_a_foreign_application_chooses_within_our_families(composed):
    assert composed["chosen"]["callbacks"]["pruning_scheduler"]["criterion"]["_target_"].endswith("MeanActivation")


def test_our_groups_do_not_leak_into_those_of_the_application(composed):
    groups = composed["groups"]
    assert groups["schedule"] == ["cosine"]
    assert groups["model"] == ["cubic"]
    assert groups["data"] == ["digits"]
    assert groups["pruning"] == ["magnitude"]
    assert groups["task"] == groups["recipe"] == []
    ours = {
        "batch_mixer",
        "distillation_teacher",
        "dropout_scheduler",
        "nas_supernet",
        "penalty_regularizer",
        "pruning_scheduler",
        "qat_fake_quant",
        "sharpness_aware",
    }
    assert set(groups["callbacks"]) == {"default", *ours}
    assert composed["plain"]["schedule"] == composed["plain"]["model"] == {"whose": "client"}
    assert set(composed["plain"]["callbacks"]) == {"checkpoint"}


def test_an_application_that_does_not_use_us_does_not_pay_for_torch(composed):
    assert composed["heavy"] == []


FACTORIES = """
import importlib, importlib.metadata
for namespace in ("lightning.pytorch", "pytorch_lightning"):
    found = importlib.metadata.entry_points(group=namespace + ".callbacks_factory")
    assert "lightning_optim" in [entry.name for entry in found], namespace
    Trainer = importlib.import_module(namespace).Trainer
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    print(namespace, *(type(callback).__name__ for callback in Trainer(**quiet).callbacks))
"""


def test_an_unmodified_script_takes_callbacks_from_a_file(installed, tmp_path):
    (tmp_path / "callbacks.yaml").write_text(
        "pruning:\n"
        "  _target_: lightning_optim.PruningScheduler\n"
        "  schedule: {_target_: lightning_optim.schedule.cubic.Cubic, end: 0.8}\n"
    )
    done = run(installed, FACTORIES, tmp_path, LIGHTNING_OPTIM="callbacks.yaml")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if "lightning" in line.split(" ")[0]]
    assert {words[0] for words in lines} == {"lightning.pytorch", "pytorch_lightning"}
    assert all("PruningScheduler" in words for words in lines)


def test_importing_the_package_imports_neither_torch_nor_lightning(installed, tmp_path):
    code = "import lightning_optim, sys; print(sorted({'torch', 'lightning', 'hydra'} & set(sys.modules)))"
    done = run(installed, code, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_console_script_of_the_wheel_finds_its_groups(installed, tmp_path):
    script = installed.with_name("lightning-optim")
    done = subprocess.run([str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "fashion_mnist" in done.stdout
    assert "mean_activation" in done.stdout
