"""What a network comes to hold while it trains changes nothing: metrics, losses, what cannot be copied."""

import threading

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_optim import PruningScheduler, QATFakeQuant
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Linear


def keeping(kind):
    """A module whose network keeps a metric and the losses, with the graphs behind them, and a lock."""

    class Keeping(kind):
        def __init__(self, *args):
            super().__init__(*args)
            self.net.loss, self.net.lock, self.net.losses = MeanMetric(), threading.Lock(), {"last": []}

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.net.loss(loss)
            self.log("train/loss", self.net.loss)
            self.net.losses["last"].append(loss)
            return loss

    return Keeping


def test_what_a_network_keeps_changes_nothing(case, kit):
    module, callback = case.module(kind=keeping(kit.Module)), case.make()
    kit.fit(module, callback)
    assert module.net.losses["last"][-1].requires_grad
    reference, _ = kit.plain_fit(case)
    kit.same(dict(reference.state_dict()), dict(module.state_dict()))


class OwnLayers(LightningModule):
    """Its layers lie in itself, beside the metric that its loss goes into."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.loss = nn.Linear(3, 8), nn.Linear(8, 2), MeanMetric()

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

    def training_step(self, batch, _):
        loss = self(batch).square().mean()
        self.loss(loss)
        self.log("loss", self.loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def test_a_module_with_a_metric_beside_its_layers_is_cut_and_exported(kit, tmp_path):
    module, prune, quantize = (
        OwnLayers(),
        PruningScheduler(schedule=Linear(end=0.5), structure=Channel()),
        QATFakeQuant(),
    )
    for callback in (prune, quantize):
        kit.trainer(callback).fit(module, DataLoader(torch.randn(16, 3), batch_size=4))
    assert module.a.weight.shape == (4, 3)
    assert quantize.export(tmp_path / "model.onnx", module).parity.top1_agreement == 1.0
