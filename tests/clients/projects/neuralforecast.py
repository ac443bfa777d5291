"""neuralforecast: models that build a Trainer of pytorch_lightning from their keywords, ``callbacks`` among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS, TCN, PatchTST

from clients.client import Client

DOOR = "argument"
HORIZON, LENGTH = 4, 32


def series() -> pd.DataFrame:
    """Four noisy waves, as a long table."""
    days, noise = np.arange(120), np.random.default_rng(0)
    waves = [np.sin(days / (3.0 + index)) + 0.1 * noise.standard_normal(len(days)) for index in range(4)]
    tables = [pd.DataFrame({"unique_id": str(index), "ds": days, "y": wave}) for index, wave in enumerate(waves)]
    return pd.concat(tables)


def fit(model: type, callbacks: list[Callback], **settings: Any) -> None:
    """Train as the project's documentation shows."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    steps = {"max_steps": 16, "batch_size": 4, "windows_batch_size": 16, "random_seed": torch.initial_seed()}
    built = model(h=HORIZON, input_size=LENGTH, callbacks=callbacks, **steps, **quiet, **settings)
    NeuralForecast(models=[built], freq=1).fit(series())


def nhits(callbacks: list[Callback]) -> None:
    fit(NHITS, callbacks, mlp_units=3 * [[32, 32]])


def patchtst(callbacks: list[Callback]) -> None:
    fit(PatchTST, callbacks, hidden_size=32, linear_hidden_size=64, n_heads=4, encoder_layers=2, patch_len=8, stride=4)


def tcn(callbacks: list[Callback]) -> None:
    fit(TCN, callbacks, encoder_hidden_size=32, decoder_hidden_size=32, context_size=4)


def node(*size: int) -> dict[str, Any]:
    """An example's tensor in a configuration."""
    return {"_target_": "torch.ones", "size": list(size)}


EMPTY = {"futr_exog": None, "hist_exog": None, "stat_exog": None}
WINDOWS = {"insample_y": node(2, LENGTH, 1), "insample_mask": node(2, LENGTH, 1), **EMPTY}
LOSS = {"_target_": "clients.regression.MeanSquare"}
EXTRA = {"search": {"example": {"windows_batch": WINDOWS}}}
SERIES = {"search": {"example": [node(2, 1, LENGTH)]}}
CLIENTS = {
    "NHITS": Client(train=nhits, width="blocks.0.layers.0", loss=LOSS, extra=EXTRA),
    "PatchTST": Client(train=patchtst, width="model.backbone.encoder.layers.0.ff.0", loss=LOSS, extra=SERIES),
    "TCN": Client(train=tcn, width="hist_encoder.tcn.0.conv", loss=LOSS, extra=EXTRA),
}
