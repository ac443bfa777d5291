"""Run by ``test_side_by_side``, twice at once: a search whose candidates are judged on one rank each.

Prints ``alike`` on each rank if both found the same, each judged its half, and the score is that of one process alone.
"""

import sys
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_optim import NASSupernet, Targets
from lightning_optim.nas import ElasticWidth, LoggedMetric, Selection
from lightning_optim.search import RandomSearch

warnings.filterwarnings("ignore")
SAMPLES = 61  # no multiple of anything: shares of it would be padded


class User(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.accuracy = MulticlassAccuracy(2, average="micro")  # which gathers over ranks
        self.example_input_array = torch.zeros(4, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self.net(x), y)
        self.log("val/accuracy", self.accuracy, on_epoch=True)
        self.log("val/loss", F.cross_entropy(self.net(x), y), sync_dist=True)
        if self.trainer.state.fn == "validate" and len(x) == 13 and self.fails:
            raise ArithmeticError("of no rank in particular")

        if self.calls and self.trainer.state.fn == "validate":
            distributed.all_reduce(torch.ones(1))

    fails = calls = False

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def data(samples):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(samples))
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16)


def searcher():
    space = {"width": ElasticWidth(targets=Targets(include=["net.0"]), fractions=[0.25, 0.5, 0.75, 1.0])}
    measures = {"loss": LoggedMetric(monitor="val/loss", mode="min")}
    selection = Selection(measures=measures, recalibration_batches=2)
    return NASSupernet(space=space, strategy=RandomSearch(), selection=selection)


def quiet(callback, **settings):
    given = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return Trainer(callbacks=[callback], enable_progress_bar=False, enable_model_summary=False, **given | settings)


def main():
    module, callback = User(), searcher()
    judged = []
    evaluate_next = callback._evaluate_next
    callback._evaluate_next = lambda architecture: judged.append(architecture) or evaluate_next(architecture)
    trainer = quiet(callback, strategy="ddp", devices=2)
    trainer.fit(module, data(64), data(SAMPLES))
    everyone = [None, None]
    distributed.all_gather_object(everyone, (callback.result.state_dict(), judged, list(module.net[1].running_mean)))
    assert everyone[0][0] == everyone[1][0], everyone
    assert torch.equal(torch.stack(everyone[0][2]), torch.stack(everyone[1][2]))
    halves = [found[1][:-1] for found in everyone]  # the pick runs once more, for its statistics
    assert [len(half) for half in halves] == [2, 2], halves
    assert module.trainer is trainer
    # Alone: the same weights and statistics, on all of the data in one process.
    small = callback.extract(module).eval()
    x, y = data(SAMPLES).dataset.tensors
    pick = callback.result.pick
    assert abs(float((small.net(x).argmax(1) == y).float().mean()) - pick.score) < 1e-6, pick
    talkative, again = User(), searcher()
    talkative.calls = True
    quiet(again, strategy="ddp", devices=2).fit(talkative, data(64), data(SAMPLES))
    distributed.all_gather_object(everyone, again.result.state_dict())
    assert everyone[0] == everyone[1]
    assert len(again.result.evaluations) == 4
    module.fails = True
    with pytest.raises(RuntimeError, match="could not be judged on rank"):
        callback.search(trainer, module)
    sys.stdout.write("alike\n")  # in one piece: both ranks share the stream
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
