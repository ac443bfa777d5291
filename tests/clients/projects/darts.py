"""darts: models that build a Trainer of pytorch_lightning from ``pl_trainer_kwargs``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.models import NHiTSModel, TCNModel
from lightning.pytorch import Callback

from clients.client import Client

DOOR = "argument"
INPUT, OUTPUT = 32, 4


def fit(model: type, callbacks: list[Callback], **settings: Any) -> None:
    """Train as the project's documentation shows."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    built = model(
        input_chunk_length=INPUT, output_chunk_length=OUTPUT, n_epochs=3, batch_size=16,
        random_state=torch.initial_seed(),
        pl_trainer_kwargs={"accelerator": "cpu", "callbacks": callbacks, **quiet}, **settings,
    )  # fmt: skip
    wave = np.sin(np.arange(140) / 3.0) + 0.1 * np.random.default_rng(0).standard_normal(140)
    built.fit(TimeSeries.from_values(wave.astype(np.float32)))


def nhits(callbacks: list[Callback]) -> None:
    fit(NHiTSModel, callbacks, layer_widths=32, num_stacks=2)


def tcn(callbacks: list[Callback]) -> None:
    fit(TCNModel, callbacks, num_filters=32, kernel_size=3)


LOSS = {"_target_": "clients.regression.MeanSquare"}
WINDOW = {"_target_": "torch.ones", "size": [2, INPUT, 1]}
EXAMPLE = [{"_target_": "darts.utils.data.torch_datasets.utils.PLModuleInput", "past_target": WINDOW}]
EXTRA = {"search": {"example": EXAMPLE}}
CLIENTS = {
    "NHiTS": Client(train=nhits, width="stacks.0.blocks.0.layers.0", loss=LOSS, extra=EXTRA),
    "TCN": Client(train=tcn, width="res_blocks.0.conv1", loss=LOSS, extra=EXTRA),
}
