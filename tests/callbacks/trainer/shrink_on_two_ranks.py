"""Run by ``test_reshape``: a network shrinks under a strategy that derives from DDPStrategy, on two ranks.

Each rank has data of its own, so that weights stay equal only while their gradients are averaged; each prints
``WIDTH equal VALUE``, where the value is one that a callback owns.
"""

import sys
import warnings

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.callbacks.trainer.own_parameters import OwnParameters
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Steps
from support import quiet, same


class OwnStrategy(DDPStrategy):
    """A user's own."""


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(100 * self.global_rank + batch_idx)
        x = torch.randn(5, 6, generator=generator)
        return F.cross_entropy(self.net(x), x[:, :3].argmax(1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.02)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    module = Net()
    pruning = PruningScheduler(
        schedule=Steps(values=[0.5]), structure=Channel(), window=Window(begin=2, end=3, every=1, unit="step")
    )
    trainer = quiet(pruning, max_epochs=1, strategy=OwnStrategy(), devices=2)
    trainer.fit(module, DataLoader(torch.arange(16), 1))
    own = OwnParameters([torch.zeros((), requires_grad=True)], lambda tensors: torch.optim.SGD(tensors, 1.0))
    (own.tensors[0] * (1.0 + trainer.global_rank)).backward()
    own.note_step(trainer)
    own.end_batch(trainer)
    everyone = [None, None]
    distributed.all_gather_object(everyone, dict(module.state_dict()))
    verdict = "equal" if same(*everyone) else "differs"
    sys.stdout.write(f"{module.net[0].out_features} {verdict} {own.tensors[0].item()}\n")
    sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
