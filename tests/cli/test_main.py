import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import lightning_optim
import lightning_optim.conf


def test_help_shows_every_group_and_option_with_its_line(call):
    answer = call("--help")
    assert answer.code == 0
    folder = Path(lightning_optim.conf.__path__[0])
    for path in folder.rglob("*.yaml"):
        if path.parent.name != "lightning_optim":  # those are the sub-commands' own
            first = next(line for line in path.read_text().splitlines() if line[:2] == "# " and "@package" not in line)
            assert path.stem in answer.out
            assert str(path.parent.relative_to(folder)).removeprefix("lightning_optim/") in answer.out
            assert first.split()[1] in answer.out
    assert "run=" in answer.out


def test_help_is_ours_wherever_it_stands(call):
    assert call("compress", "--help").out == call("seed=1", "-h").out == call("--help").out


def test_version(call):
    assert call("--version").out == f"lightning-optim {lightning_optim.__version__}\n"


def test_the_configuration_can_be_printed_and_nothing_runs(call, contents):
    answer = call("compress", "--cfg", "job", "seed=3", "data=fashion_mnist")
    assert answer.code == 0
    assert "seed: 3" in answer.out
    assert "stem_stride: 2" in answer.out  # what suits this data set came along
    assert contents() == {}


def test_a_module_of_ones_own_takes_none_of_the_demo_models_keywords(call):
    answer = call("--cfg", "job", "--package", "model", "model._target_=my.Module", "+model.width=64")
    assert answer.code == 0
    assert set(answer.out.split("\n")) >= {"_target_: my.Module", "width: 64"}
    assert not any(word in answer.out for word in ("lr:", "network:"))


def test_python_dash_m_is_the_same_program_and_starts_without_torch(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['lightning-optim', '--version'];"
        "runpy.run_module('lightning_optim', run_name='__main__');"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lightning-optim ")


def test_help_on_an_analysis_shows_its_own_keys(call):
    answer = call("analyze", "--help")
    assert answer.code == 0
    assert call("analyze", "seed=1", "-h").out == answer.out
    folder = Path(lightning_optim.conf.__path__[0]) / "lightning_optim"
    config = OmegaConf.load(folder / "analyze.yaml")
    own = set(config) - {"defaults", "hydra"}
    keys = {word.split("=")[0] for word in answer.out.split("keys")[-1].split() if "=" in word}
    assert own <= {key.split(".")[0] for key in keys}
    assert {"targets.include", "trainer.limit_val_batches", "data", "model"} <= keys
    assert "latency_seconds" not in answer.out


MINE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Module(LightningModule):
    def __init__(self, width=8, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


class Data(LightningDataModule):
    def __init__(self, samples=32):
        super().__init__()
        x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, (x.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=16)

    val_dataloader = test_dataloader = train_dataloader
"""
OWN = ("model._target_=mine.Module", "data._target_=mine.Data")


@pytest.fixture
def project(own_module):
    """A folder with a project's own module and data, which no path leads to."""
    return own_module(MINE)


@pytest.mark.filterwarnings("ignore")
def test_a_projects_own_module_and_data_are_compressed_and_analyzed_from_its_folder(call, project):
    stages = [f"recipe.stages.{name}.trainer.max_epochs=4" for name in ("base", "prune", "qat")]
    words = ["recipe.order=[base,prune,qat,export]", *stages, "latency_seconds=0.1", "hydra.run.dir=run"]
    answer = call("model=custom", "data=custom", *OWN, "+model.width=16", "+recipe.stages.qat.settings.lr=1e-4", *words)
    assert answer.code == 0, answer.err
    assert (project / "run" / "model.onnx").is_file()
    steps = [line for line in answer.out.splitlines() if line.startswith("prune: PruningScheduler: channel: ")]
    assert " of 16 gone (" in steps[0]  # one line a step, from the first to the last
    assert " in this step (" in steps[-1]
    assert call("run=run").code == 0
    analyzed = ("analyze", *OWN, "+model.width=16", "weights=run/stages/0-base", "sparsities=[0.5]", "bits=[]")
    answer = call(*analyzed, "hydra.run.dir=analysis")
    assert answer.code == 0, answer.err
    assert (project / "analysis" / "analyze.json").is_file()


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["data=custom"], ["data._target_=FILE.CLASS", "LightningDataModule"]),
        (["model=custom"], ["model._target_=FILE.CLASS", "LightningModule"]),
        (["analyze", "data=custom", "weights=w.ckpt"], ["data._target_=FILE.CLASS"]),
        (["model._target_=mine.Data"], ["must name a LightningModule", "makes a Data"]),
        (["data._target_=mine.Module"], ["must name a LightningDataModule", "makes a Module"]),
        (["data._target_=yours.Data"], ["No module named 'yours'", "looked in"]),
        (["data._target_=mine.Data", "+data.sample=3"], ["unexpected keyword argument 'sample'"]),
        ([*OWN, "metrics.test=test/acc"], ["'test/accuracy'", "set metrics.test to one of them"]),
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore")
def test_a_mistake_in_ones_own_parts_is_told_in_one_line(call, project, words, fragments):
    (project / "w.ckpt").write_bytes(b"")
    answer = call(*words)
    assert answer.code == 1
    (line,) = answer.err.strip().splitlines()
    assert all(fragment in line for fragment in fragments), line


@pytest.mark.parametrize(("model", "fallbacks"), [("residual", "refused"), ("vit", "refused"), ("custom", "named")])
def test_what_has_no_integer_kernel_is_refused_in_the_demo_models_and_named_in_ones_own(call, model, fallbacks):
    printed = call(f"model={model}", "--cfg", "job").out
    assert f"\n  fallbacks: {fallbacks}\n" in printed
