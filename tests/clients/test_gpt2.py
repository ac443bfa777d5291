"""Channels and heads of transformers' GPT-2, whose layers are ``Conv1D``."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.pruning import Channel, Head
from lightning_optim.schedule import Steps
from support import quiet

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(batch).last_hidden_state.pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


# A block loses 64 of 128 columns and biases of c_fc and rows of c_proj; or 2 of 4 heads, 16 of 32 of each projection.
CASES = [(Channel, "net.h.*.mlp.c_fc", 64 * (32 + 1 + 32)), (Head, "net.h.*.attn.c_attn", 16 * (3 * (32 + 1) + 32))]


@pytest.mark.parametrize(("structure", "pattern", "gone"), CASES)
def test_a_shrunk_gpt2_computes_what_the_masked_one_does(structure, pattern, gone):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=64, n_positions=12, n_embd=32, n_layer=2, n_head=4, use_cache=False)
    )
    ids, found = torch.randint(64, (4, 9)), {}
    for shrink in ("never", "end"):
        pruning = PruningScheduler(
            schedule=Steps(values=[0.5]),
            structure=structure(shrink=shrink),
            targets=Targets(include=[pattern]),
            window=Window(end=1, unit="step"),
        )
        found[shrink] = copy.deepcopy(net)
        quiet(pruning, max_epochs=1).fit(Module(found[shrink]), DataLoader(ids.repeat(2, 1), batch_size=4))
        assert pruning.sparsity == 0.5
    masked, shrunk = (each.eval()(ids).last_hidden_state for each in found.values())
    torch.testing.assert_close(shrunk, masked, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(masked, net.eval()(ids).last_hidden_state, atol=1e-3)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (net, found["end"])]
    assert sizes[0] - sizes[1] == 2 * gone
