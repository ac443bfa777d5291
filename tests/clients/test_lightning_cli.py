"""LightningCLI: each callback from its yaml, by full class names, and by short ones once the package is imported."""

import gc
import importlib
import inspect
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clients.counting import Products, parameters_of, zeros_of
from lightning_optim import PruningScheduler
from lightning_optim.pruning import Magnitude
from lightning_optim.schedule import Iterative

WIDE, POINTS = 24, torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Sequential):
    def __init__(self, width: int = WIDE):
        super().__init__(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


class Module(LightningModule):
    def __init__(self, width: int = WIDE, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = Net(width)
        self.example_input_array = torch.zeros(2, 8)
        self.losses: list[float] = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def train_dataloader(self):
        return DataLoader(TensorDataset(POINTS, POINTS[:, :3].argmax(1)), 16)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


TRAINER = """
trainer:
  max_epochs: 6
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
"""


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning itself calls what is deprecated there

    def run(callbacks, *words):
        (tmp_path / "config.yaml").write_text(TRAINER + callbacks)
        words = ["fit", "--config", str(tmp_path / "config.yaml"), *words]
        return LightningCLI(Module, args=words, save_config_callback=None, seed_everything_default=0)

    return run


CHANNELS = """
    - class_path: lightning_optim.PruningScheduler
      init_args:
        schedule: {class_path: lightning_optim.schedule.Iterative, init_args: {end: 0.5}}
        structure: {class_path: lightning_optim.pruning.Channel}
        window: {end: 0.5, every: 0.1}
"""
SHORT = """
    - class_path: PruningScheduler
      init_args:
        schedule: {class_path: Iterative, init_args: {end: 0.5}}
        criterion: {class_path: Magnitude, init_args: {p: 2.0}}
        targets: {exclude: [net.2]}
"""
ROUNDED = """
    - class_path: lightning_optim.QATFakeQuant
      init_args:
        weight_quantizer: {class_path: lightning_optim.quantization.Symmetric, init_args: {bits: 3}}
        freeze: {observer: 0.5}
"""
DISTILLED = """
    - class_path: lightning_optim.DistillationTeacher
      init_args:
        teacher:
          class_path: lightning_optim.distillation.Checkpoint
          init_args:
            path: PATH
            architecture: {class_path: CLASS, init_args: {width: 40}}
        losses: LOSSES
        hard_weight: 1.0
        weight: 1.0
"""
LOSS = "{class_path: lightning_optim.distillation.SoftTarget, init_args: {temperature: 2.0}}"
SEARCHED = """
    - class_path: lightning_optim.NASSupernet
      init_args:
        search_at: call
        space:
          width:
            class_path: lightning_optim.nas.ElasticWidth
            init_args: {targets: {include: [net.0]}, fractions: [0.5, 1.0]}
"""


def test_channels_are_cut_by_full_class_names(fit):
    net = fit(CHANNELS).model.net
    assert net[0].out_features == net[2].in_features == WIDE // 2
    assert parameters_of(net) == 8 * 12 + 12 + 12 * 3 + 3


def test_weights_are_pruned_by_short_names_once_the_package_is_imported(fit):
    assert {each.__name__ for each in (PruningScheduler, Iterative, Magnitude)} <= set(SHORT.replace(",", " ").split())
    net = fit(SHORT).model.net
    assert zeros_of(net[0]) == 0.5
    assert zeros_of(net[2]) == 0.0


def families(kind):
    for inner in kind.__subclasses__():
        if inner.__module__.startswith("lightning_optim."):  # tests have families of their own
            yield inner
            yield from families(inner)


PACKAGES = ("cost", "distillation", "export", "nas", "pruning", "quantization", "schedule", "search")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_short_name_names_one_class(package):
    module = importlib.import_module(f"lightning_optim.{package}")
    public = [getattr(module, name) for name in module.__all__]
    gc.collect()
    for kind in [each for each in public if inspect.isabstract(each)]:
        names = Counter(inner.__name__ for inner in families(kind) if not inspect.isabstract(inner))
        assert [name for name in module.__all__ if names[name] > 1] == []


def test_a_word_of_the_command_line_adds_a_callback(fit):
    words = [
        "--trainer.callbacks+=lightning_optim.PruningScheduler",
        "--trainer.callbacks.schedule=lightning_optim.schedule.Constant",
    ]
    net = fit("    []\n", *words, "--trainer.callbacks.schedule.value=0.75").model.net
    assert zeros_of(net) == 0.75


def test_weights_are_rounded_as_the_yaml_says(fit):
    cli = fit(ROUNDED)
    with Products(cli.model, most=8) as products:
        cli.trainer.predict(cli.model, DataLoader(POINTS, 20))
    assert products.few == products.all > 0


@pytest.mark.parametrize("losses", [LOSS, f"{{soft: {LOSS}}}"], ids=["one", "by key"])
def test_a_checkpoint_and_its_architecture_are_a_teacher(fit, tmp_path, losses):
    teacher = Module(width=40)
    torch.save({"state_dict": teacher.state_dict()}, tmp_path / "teacher.ckpt")
    yaml = DISTILLED.replace("PATH", str(tmp_path / "teacher.ckpt")).replace("CLASS", f"{Net.__module__}.Net")
    yaml = yaml.replace("LOSSES", losses)
    x = POINTS[:16]
    logits = Module().net(x) / 2.0, teacher.net(x) / 2.0
    divergence = nn.functional.kl_div(logits[0].log_softmax(-1), logits[1].log_softmax(-1), log_target=True,
                                      reduction="batchmean")  # fmt: skip
    alone = fit("    []\n").model.losses[0]
    assert fit(yaml).model.losses[0] == pytest.approx(alone + 4.0 * float(divergence), rel=1e-5)


def test_paths_of_a_supernet_are_trained(fit):
    widths = set()
    cli = fit(SEARCHED)
    (search,) = (each for each in cli.trainer.callbacks if type(each).__name__ == "NASSupernet")
    for option in (0, 1):
        search.supernet.activate({"net.0:width": option})
        cli.model.net[0].register_forward_hook(lambda module, args, output: widths.add(output.shape[1]))
        cli.model(POINTS)
    assert widths == {12, 24}
