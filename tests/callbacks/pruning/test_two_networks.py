"""Two networks in one LightningModule, each with callbacks of its own: they live together and resume together."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant, Targets
from lightning_optim.distillation import ModuleTeacher
from lightning_optim.pruning import Channel, load_pruned
from lightning_optim.schedule import Linear
from support import quiet, same


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Module(LightningModule):
    """Two networks of one architecture, each with a loss of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = mlp(), mlp()

    def training_step(self, batch, batch_idx):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        return F.cross_entropy(self.a(x), x[:, 0].gt(0).long()) + F.cross_entropy(self.b(x), x[:, 1].gt(0).long())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def fit(module, *callbacks, ckpt_path=None, **settings):
    quiet(*callbacks, max_epochs=2, **settings).fit(module, DataLoader(torch.arange(4)), ckpt_path=ckpt_path)
    return module


def pruning(name, structure, end=0.5):
    targets = Targets(include=[f"{name}.*"])
    return PruningScheduler(schedule=Linear(end=end), structure=structure, targets=targets, network=name, name=name)


def quantization(name):
    return QATFakeQuant(network=name, name=name, targets=Targets(include=[f"{name}.*"]))


def distillation(name):
    torch.manual_seed(1)
    return DistillationTeacher(teacher=ModuleTeacher(module=mlp()), network=name, name=name)


def nothing(name):
    return None


FIRST = {"weight": None, "update": Channel(), "end": Channel(shrink="end")}
SECOND = {"weight": None, "update": Channel()}
BESIDE = [nothing, quantization, distillation]


def sides():
    """What happens to two networks: each pair of structures with one callback beside them; the rest is slow."""
    found = itertools.product(enumerate(FIRST), enumerate(SECOND), enumerate(BESIDE))
    for (one, first), (two, second), (three, beside) in found:
        marks = [] if three == (one + two) % len(BESIDE) else pytest.mark.slow
        said = f"{first}-{second}-{beside.__name__}"
        yield pytest.param(FIRST[first], SECOND[second], beside, id=said, marks=marks)


@pytest.mark.parametrize(("first", "second", "beside"), list(sides()))
def test_two_networks_are_pruned_side_by_side_and_resume_bit_equal(first, second, beside, tmp_path):
    def callbacks():
        both = pruning("a", first), pruning("b", second, end=0.25), beside("a"), beside("b")
        return [callback for callback in both if callback is not None]

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(Module(), *callbacks(), saver, enable_checkpointing=True)
    for net, structure, gone in ((whole.a, first, 4), (whole.b, second, 2)):
        assert net[0].out_features == (8 if structure is None else 8 - gone)
        assert int((net[0].weight == 0).sum()) == (4 * gone if structure is None else 0)
    for step in (2, 5):
        assert same(
            fit(Module(), *callbacks(), ckpt_path=tmp_path / f"step={step}.ckpt").state_dict(), whole.state_dict()
        )


def test_a_file_of_two_networks_of_one_architecture_is_read(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="last")
    both = pruning("a", Channel()), pruning("b", Channel())
    whole = fit(Module(), *both, saver, enable_checkpointing=True)
    assert same(load_pruned(Module(), tmp_path / "last.ckpt").state_dict(), whole.state_dict())
