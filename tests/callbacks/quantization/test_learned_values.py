"""Values that quantizers learn, trained with whatever optimizer the user steps."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import QATFakeQuant
from lightning_optim.quantization import LearnedStep
from support import quiet, same


class Manual(LightningModule):
    """Steps its optimizer by hand, one of the trainer's or one that the trainer does not know."""

    def __init__(self, *, is_known):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.is_known = is_known

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers() if self.is_known else self.own
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()

    def configure_optimizers(self):
        own = torch.optim.SGD(self.parameters(), 0.1)
        if self.is_known:
            return own
        self.own = own
        return None


def test_learned_steps_are_trained_where_the_training_step_keeps_its_optimizer_to_itself():
    learned = []
    for is_known in (True, False):
        module, callback = Manual(is_known=is_known), QATFakeQuant(weight_quantizer=LearnedStep(bits=4))
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        quiet(callback, max_epochs=2).fit(module, DataLoader(TensorDataset(x, torch.arange(32) % 3), 8))
        learned.append((callback.state_dict()["learned"], dict(module.state_dict())))
    assert same(*learned)
    first = QATFakeQuant(weight_quantizer=LearnedStep(bits=4))
    quiet(first, max_steps=1).fit(Manual(is_known=True), DataLoader(TensorDataset(x, torch.arange(32) % 3), 8))
    assert not same(first.state_dict()["learned"], learned[1][0])
