"""Files of shrunk modules: whoever loads one strictly is told what reads it, and our callbacks and loader do."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant
from lightning_optim.pruning import Channel, load_pruned
from lightning_optim.schedule import Linear
from lightning_optim.surgery.shrunk_checkpoint import MARK
from support import quiet, same


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def loader():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 8)


def pruning():
    return PruningScheduler(schedule=Linear(end=0.5), structure=Channel())


@pytest.fixture(scope="module", params=["in the fit", "weights alone", "after the fit", "averaged"])
def shrunk(request, tmp_path_factory):
    """A file of a shrunk module, and the weights in it."""
    folder = tmp_path_factory.mktemp("shrunk")
    torch.manual_seed(0)
    module = Small()
    saver = ModelCheckpoint(folder, filename="saved", save_weights_only=request.param == "weights alone")
    averages = [EMAWeightAveraging(decay=0.5)] if request.param == "averaged" else []
    trainer = quiet(pruning(), *averages, saver, max_epochs=4, enable_checkpointing=True)
    trainer.fit(module, loader())
    if request.param == "after the fit":
        trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt", module


def test_the_file_has_one_more_entry_which_is_empty(shrunk):
    path, module = shrunk
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert saved.keys() - module.state_dict().keys() == {MARK}
    assert saved[MARK].numel() == 0


def test_a_strict_load_says_what_reads_the_file(shrunk):
    path, _ = shrunk
    with pytest.raises(RuntimeError, match=r"lightning_optim\.pruning\.load_pruned"):
        quiet().test(Small(), loader(), ckpt_path=path, verbose=False, weights_only=True)
    with pytest.raises(RuntimeError, match=r"lightning_optim\.pruning\.load_pruned"):
        Small.load_from_checkpoint(path, weights_only=True)


def test_load_pruned_and_the_callback_read_it(shrunk):
    path, module = shrunk
    loaded = load_pruned(Small(), path)
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
    again = Small()
    found = quiet(pruning()).test(again, loader(), ckpt_path=path, verbose=False, weights_only=True)
    assert found == quiet().test(module, loader(), verbose=False)
    assert same(dict(again.state_dict()), dict(module.state_dict()))


def test_every_callback_of_ours_reads_it_into_a_module_of_its_shape(shrunk):
    path, module = shrunk
    for callback in (pruning(), QATFakeQuant(), DistillationTeacher(teacher=nn.Linear(6, 3))):
        quiet(callback).test(load_pruned(Small(), path), loader(), ckpt_path=path, verbose=False, weights_only=True)
    assert "on_load_checkpoint" not in vars(module)


def test_a_fit_goes_on_from_it(shrunk):
    path, _ = shrunk
    saved = torch.load(path, weights_only=True)
    if "optimizer_states" not in saved:
        return
    module = Small()
    averages = [EMAWeightAveraging(decay=0.5)] if "averaging_state" in saved else []
    quiet(pruning(), *averages, max_epochs=6).fit(module, loader(), ckpt_path=path, weights_only=True)
    assert module.net[0].out_features == 8


def test_modes_are_those_of_the_module_that_was_given(shrunk):
    path, _ = shrunk
    full = Small()
    full.net[1].eval()
    loaded = load_pruned(full, path)
    assert [part.training for part in loaded.modules()] == [part.training for part in full.modules()]
    assert not load_pruned(Small().eval(), path).net[3].training


def test_a_checkpoint_that_the_caller_has_loaded_serves_as_well(shrunk):
    path, module = shrunk
    loaded = load_pruned(Small(), torch.load(path, weights_only=False))
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
