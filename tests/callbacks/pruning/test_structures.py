"""Structures in a fit: the sparsity asked is reached, up to the last head or channel."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.cost import count_macs
from lightning_optim.demo import VisionTransformer
from lightning_optim.pruning import Block, Channel, GlobalThreshold, Head, Layer, Neuron, SemiStructured, load_pruned
from lightning_optim.schedule import Steps
from support import quiet

LABELS = torch.arange(4).repeat(4)


class Classifier(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.1)


def fit(net, values, **keywords):
    """Prune once a step, then train on for one."""
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    data = DataLoader(
        TensorDataset(images.repeat(len(values) + 1, 1, 1, 1), torch.arange(4).repeat(len(values) + 1)), 4
    )
    window = Window(end=len(values), unit="step")
    pruning = PruningScheduler(schedule=Steps(values=values), window=window, **keywords)
    quiet(pruning, max_epochs=1).fit(Classifier(net), data)
    return net, pruning


def transformer():
    torch.manual_seed(0)
    return VisionTransformer(dim=16, depth=2, hidden=32, num_heads=4)


@pytest.mark.parametrize("shrink", ["update", "end", "never"])
def test_heads_go_until_one_is_left_in_each_attention(shrink):
    net, pruning = fit(transformer(), [0.25, 0.5, 0.75, 0.9], structure=Head(shrink=shrink))
    assert pruning.target_sparsity == 0.9
    attentions = [block.attention for block in net.blocks]
    alive = [
        int(attention.proj.weight.unflatten(1, (-1, 4)).abs().sum((0, 2)).count_nonzero()) for attention in attentions
    ]
    assert alive == [1, 1]
    assert [attention.num_heads for attention in attentions] == ([4, 4] if shrink == "never" else [1, 1])
    assert net.blocks[0].fc1.out_features == 32


class Sequence(nn.Module):
    """Rows of an image, through PyTorch's own encoder and decoder layers."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(16, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), 2)
        self.decoder = nn.TransformerDecoderLayer(8, 4, 16, batch_first=True)
        self.leave = nn.Linear(8, 4)

    def forward(self, x):
        x = self.enter(x.squeeze(1))
        return self.leave(self.decoder(x, self.encoder(x)).mean(1))


@pytest.mark.parametrize("shrink", ["update", "never"])
def test_heads_of_pytorchs_own_attention_go_in_encoders_and_decoders(shrink, tmp_path):
    torch.manual_seed(0)
    net, pruning = fit(Sequence(), [0.25, 0.5], structure=Head(shrink=shrink), allocation=GlobalThreshold())
    assert pruning.target_sparsity == 0.5
    attentions = [module for module in net.modules() if isinstance(module, nn.MultiheadAttention)]
    alive = [
        int(module.out_proj.weight.unflatten(1, (-1, 2)).abs().sum((0, 2)).count_nonzero()) for module in attentions
    ]
    assert sum(alive) == 8
    assert [module.num_heads for module in attentions] == (alive if shrink == "update" else [4] * 4)
    images = torch.randn(2, 1, 16, 16)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    loaded = load_pruned(Sequence().eval(), tmp_path / "net.pt", cut=pruning.cut)
    torch.testing.assert_close(loaded(images), net.eval()(images))


def test_a_fit_with_pytorchs_own_attention_goes_on_bit_equal(tmp_path):
    ends = []
    for ckpt_path in (None, tmp_path / "step=2.ckpt"):
        torch.manual_seed(len(ends))
        net = Sequence()
        for module in net.modules():
            if isinstance(module, nn.Dropout | nn.MultiheadAttention):
                setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        pruning = PruningScheduler(
            schedule=Steps(values=[0.25, 0.5, 0.5, 0.5]), window=Window(end=4, unit="step"), structure=Head()
        )
        images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        data = DataLoader(TensorDataset(images.repeat(4, 1, 1, 1), LABELS), 4)  # Lightning replays batches
        trainer = quiet(pruning, saver, max_epochs=1, enable_checkpointing=True)
        trainer.fit(Classifier(net), data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        ends.append(net)
    assert ends[1].decoder.self_attn.num_heads == 2
    for (name, one), other in zip(ends[0].state_dict().items(), ends[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_heads_of_the_least_important_attention_go_first_and_the_count_is_of_all_original_ones():
    net = transformer()
    with torch.no_grad():
        for head, factor in enumerate((1.0, 0.01, 0.02, 0.03)):  # three heads of the first attention hardly matter
            net.blocks[0].attention.qkv.weight.unflatten(0, (3, 4, 4))[:, head] *= factor
    net, _ = fit(net, [0.375, 0.5, 0.625], structure=Head(), allocation=GlobalThreshold())
    assert [block.attention.num_heads for block in net.blocks] == [1, 2]


def test_masked_layers_fall_whole_and_stay_so_through_training():
    net, _ = fit(transformer(), [0.25, 0.75], structure=Layer(shrink="never"))
    ends = [block.get_submodule(name) for block in net.blocks for name in ("attention.proj", "fc2")]
    assert sum(not bool(end.weight.any() or end.bias.any()) for end in ends) == 3


@pytest.mark.parametrize("make", [transformer, Sequence])
def test_layers_are_taken_out_at_the_end(make, tmp_path):
    torch.manual_seed(0)
    full, images = make(), torch.randn(2, 1, 16, 16)
    macs, parameters = count_macs(full, (images,)), sum(p.numel() for p in full.parameters())
    net, pruning = fit(full, [0.25, 0.75], structure=Layer())
    assert pruning.target_sparsity == 0.75
    assert count_macs(net, (images,)) < 0.5 * macs
    assert sum(p.numel() for p in net.parameters()) < 0.5 * parameters
    torch.save(net.state_dict(), tmp_path / "net.pt")
    loaded = load_pruned(make().eval(), tmp_path / "net.pt", cut=pruning.cut)
    torch.testing.assert_close(loaded(images), net.eval()(images))
    assert list(loaded.state_dict()) == list(net.state_dict())


def test_channels_go_until_one_is_left_of_the_only_group():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 4))
    net, pruning = fit(net, [0.5, 0.75, 0.9, 0.95], structure=Channel(), targets=Targets(include=["net.1"]))
    assert (net[1].out_features, pruning.target_sparsity) == (1, 0.95)


@pytest.mark.parametrize(
    "structure", [SemiStructured(), Block(rows=2, columns=2), Neuron()], ids=lambda s: type(s).__name__
)
def test_masked_structures_hold_through_training(structure):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 4))
    net, _ = fit(net, [0.25, 0.5], structure=structure)
    for layer in (net[1], net[3]):
        dead = layer.weight == 0
        assert float(dead.float().mean()) == 0.5
        if isinstance(structure, Neuron):
            assert torch.equal(dead.all(1), layer.bias == 0)
            assert int(dead.all(1).sum()) == layer.out_features // 2
        elif isinstance(structure, Block):
            blocks = dead.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
            assert torch.equal(blocks.any(3).any(1), blocks.all(3).all(1))
        else:
            assert bool((dead.unflatten(1, (-1, 4)).sum(2) == 2).all())
