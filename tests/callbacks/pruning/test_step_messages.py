import logging
import re

import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.pruning import Channel, Weight
from lightning_optim.schedule import Steps
from support import quiet


class Net(BoringModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def told(caplog, structure, **settings):
    callback = PruningScheduler(schedule=Steps(values=[0.25, 0.5]), structure=structure, **settings)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer = quiet(callback, max_epochs=4)
        trainer.fit(Net(), DataLoader(torch.randn(16, 32), batch_size=4))
    return [text for text in caplog.messages if "PruningScheduler" in text]


def test_each_step_tells_in_one_line_what_went(caplog):
    first, second = told(caplog, Channel(), window=Window(end=0.5))
    # 16 and 8 channels: 4 and 2 gone, then 8 and 4.
    assert first.startswith("PruningScheduler: channel: 6 of 24 gone (")
    assert second.startswith("PruningScheduler: channel: 12 of 24 gone, +6 in this step (")
    assert re.search(r"0 8 of 16, \S*2 4 of 8\); ", second)
    assert second.endswith(f"{32 * 8 + 8 + 8 * 4 + 4 + 4 * 2 + 2:,} parameters are left, 0 of them zero")


def test_zeros_of_masked_weights_are_counted(caplog):
    *_, last = told(caplog, Weight(), name="all", window=Window(end=0.5))
    weights = 32 * 16 + 16 * 8 + 8 * 2
    assert last.startswith(f"PruningScheduler 'all': weight: {weights // 2} of {weights} gone")
    assert last.endswith(f"{weights + 26} parameters are left, {weights // 2} of them zero")
