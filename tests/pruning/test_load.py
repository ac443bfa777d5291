import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler
from lightning_optim.errors import ArtefactError
from lightning_optim.pruning import Channel, load_pruned
from lightning_optim.schedule import Iterative


class Attention(nn.Module):
    """Counts its heads in an attribute, which a cut of heads changes."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, 4).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(12, 16))
        self.attention = Attention()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.attention(x)).mean(1))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.net(x) / self.temperature

    def training_step(self, batch, batch_idx):
        x = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(batch_idx))
        return F.cross_entropy(self(x), x[:, 0, :3].argmax(1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module", params=["channels", "weights"])
def pruned(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    torch.manual_seed(0)
    module = Module()
    structure = Channel() if request.param == "channels" else None
    callback = PruningScheduler(schedule=Iterative(end=0.5, rounds=2), structure=structure, network="net")
    trainer = Trainer(
        max_epochs=2,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(torch.arange(4)))
    trainer.save_checkpoint(folder / "whole.ckpt")
    save_file(module.state_dict(), folder / "module.safetensors")
    torch.save(module.net.state_dict(), folder / "net.pt")
    torch.save(dict(callback.cut), folder / "cut.pt")
    return module.eval(), callback, folder


def test_a_checkpoint_makes_the_small_module(pruned):
    module, _, folder = pruned
    full = Module().eval()
    before = copy.deepcopy(dict(full.state_dict()))
    loaded = load_pruned(full, folder / "whole.ckpt")
    assert torch.equal(loaded(X), module(X))
    assert loaded.net.attention.num_heads == module.net.attention.num_heads
    assert all(torch.equal(before[name], value) for name, value in full.state_dict().items())


def test_weights_and_the_cut_make_the_small_network(pruned):
    module, callback, folder = pruned
    for cut in (callback.cut, folder / "cut.pt"):
        assert torch.equal(load_pruned(Net().eval(), folder / "net.pt", cut=cut)(X), module.net(X))
        assert torch.equal(load_pruned(Module().eval(), folder / "module.safetensors", cut=cut)(X), module(X))


def test_without_the_cut_the_shape_is_read_off_the_weights(pruned):
    module, _, folder = pruned
    loaded = load_pruned(Net().eval(), folder / "net.pt", example=(X,))
    assert torch.equal(loaded(X), module.net(X))
    assert loaded.attention.num_heads == module.net.attention.num_heads


def test_masks_are_read_off_the_zeros(pruned):
    module, callback, folder = pruned
    if callback.cut:
        return
    loaded = load_pruned(Net().eval(), folder / "net.pt")
    for name, weight in module.net.named_parameters():
        assert torch.equal(loaded.get_parameter(name) == 0, weight == 0)


def test_without_cut_or_example_another_shape_is_refused_in_one_line(pruned):
    _, callback, folder = pruned
    if not callback.cut:
        return
    with pytest.raises(ArtefactError, match="give cut or example") as caught:
        load_pruned(Net().eval(), folder / "net.pt")
    assert "\n" not in str(caught.value)


def test_what_is_of_another_model_is_refused_in_one_line(pruned):
    _, callback, folder = pruned
    wider = Net()
    wider.stem[0] = nn.Linear(6, 14)
    wider.stem[3] = nn.Linear(14, 16)
    cases = [(wider, folder / "net.pt", {"cut": callback.cut}), (nn.Linear(2, 2), folder / "net.pt", {})]
    cases += [(nn.ReLU(), folder / "net.pt", {}), (Module(), folder / "nowhere.ckpt", {})]
    for model, path, keywords in cases:
        with pytest.raises(ArtefactError) as caught:
            load_pruned(model, path, **keywords)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["broken.ckpt", "broken.safetensors"])
def test_a_broken_file_is_refused_in_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(b"not a file of weights")
    with pytest.raises(ArtefactError, match="cannot be read") as caught:
        load_pruned(Net().eval(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ArtefactError, match="cannot be read as plain weights"):
        load_pruned(Net().eval(), tmp_path / "evil.ckpt")


def test_weights_that_depend_on_a_table_which_is_not_saved_need_the_cut(tmp_path):
    """Which channels were kept is lost, and the table cannot be cut to them."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("table", torch.arange(6.0), persistent=False)

        def forward(self, x):
            return self.two(self.one(x) * self.table)

    small = {"one.weight": torch.ones(4, 3), "one.bias": torch.ones(4), "two.weight": torch.ones(2, 4)}
    torch.save(small | {"two.bias": torch.ones(2)}, tmp_path / "small.pt")
    with pytest.raises(ArtefactError, match="'table' is not in the file"):
        load_pruned(Scaled(), tmp_path / "small.pt", example=(torch.ones(2, 3),))
