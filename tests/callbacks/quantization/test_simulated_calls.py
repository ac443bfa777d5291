"""Parts of a network that a training step calls, some of them in a checkpoint."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import QATFakeQuant
from support import quiet, same


class Parts(LightningModule):
    """Calls parts one by one; the second one in a checkpoint, whose first layer reads what the first part puts out."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        layers = {"stem": nn.Linear(4, 8), "body": nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))}
        self.net = nn.ModuleDict(layers | {"head": nn.Linear(8, 3)})
        self.reentrant, self.gradients = reentrant, []

    def training_step(self, batch, _):
        x = self.net["stem"](batch[0])
        body = self.net["body"]
        x = body(x) if self.reentrant is None else checkpoint(body, x, use_reentrant=self.reentrant)
        return self.net["head"](x).square().mean()

    def on_after_backward(self):
        self.gradients.append([parameter.grad.clone() for parameter in self.parameters()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fitted(reentrant):
    module, callback = Parts(reentrant), QATFakeQuant(network="net")
    data = TensorDataset(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    quiet(callback, max_epochs=1).fit(module, DataLoader(data, 8))
    assert "training_step" not in vars(module)
    return module.gradients, callback.state_dict()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_part_that_is_checkpointed_computes_once_more_what_it_computed(reentrant):
    assert same(fitted(reentrant), fitted(None))
