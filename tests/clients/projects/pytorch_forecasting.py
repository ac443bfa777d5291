"""pytorch-forecasting: models of lightning.pytorch that are built from a data set, in the user's own Trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Callback, Trainer
from pytorch_forecasting import NHiTS, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, QuantileLoss

from clients.client import Client

DOOR = "file"


def series(**settings: Any) -> TimeSeriesDataSet:
    """Four noisy waves."""
    days, noise = np.arange(48), np.random.default_rng(0)
    waves = [np.sin(days / (3.0 + index)) + 0.1 * noise.standard_normal(len(days)) for index in range(4)]
    tables = [pd.DataFrame({"series": str(index), "day": days, "value": wave}) for index, wave in enumerate(waves)]
    return TimeSeriesDataSet(
        pd.concat(tables, ignore_index=True), time_idx="day", target="value", group_ids=["series"],
        max_encoder_length=16, max_prediction_length=4, time_varying_unknown_reals=["value"], **settings,
    )  # fmt: skip


def fit(model: type, data: TimeSeriesDataSet, callbacks: list[Callback], **settings: Any) -> None:
    """Train as the project's tutorials show."""
    trainer = Trainer(
        max_epochs=3, limit_train_batches=6, gradient_clip_val=0.1, callbacks=callbacks, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    built = model.from_dataset(data, learning_rate=0.01, log_interval=0, **settings)
    trainer.fit(built, train_dataloaders=data.to_dataloader(train=True, batch_size=12, num_workers=0))


def tft(callbacks: list[Callback]) -> None:
    data = series(time_varying_known_reals=["day"], add_relative_time_idx=True, add_target_scales=True)
    settings = {"hidden_size": 32, "attention_head_size": 2, "hidden_continuous_size": 32, "output_size": 7}
    fit(TemporalFusionTransformer, data, callbacks, loss=QuantileLoss(), dropout=0.1, **settings)


def nhits(callbacks: list[Callback]) -> None:
    fit(NHiTS, series(), callbacks, loss=MAE(), hidden_size=32)


def node(*size: int, kind: str = "float32") -> dict[str, Any]:
    """An example's tensor in a configuration."""
    return {"_target_": "torch.ones", "size": list(size), "dtype": {**TORCH, "path": f"torch.{kind}"}}


TORCH = {"_target_": "hydra.utils.get_object"}
LENGTHS = {"encoder_lengths": 16, "decoder_lengths": 4}
LOSS = {"_target_": "clients.regression.MeanSquare"}


WINDOWS = {
    f"{part}_{what}": node(2, length, *more, kind=kind)
    for part, length in (("encoder", 16), ("decoder", 4))
    for what, more, kind in (("cat", (0,), "int64"), ("cont", (5,), "float32"), ("target", (), "float32"))
}
SIZES = {key: {"_target_": "torch.tensor", "data": [size, size]} for key, size in LENGTHS.items()}
BATCH = {"search": {"example": {"x": {**WINDOWS, **SIZES, "target_scale": node(2, 2)}}}}
SERIES = {"search": {"example": [node(2, 16, 1), node(2, 16, kind="bool"), None, None, None]}}
CLIENTS = {
    "TFT": Client(train=tft, width="pos_wise_ff.fc1", loss=LOSS, extra=BATCH),
    "NHiTS": Client(train=nhits, width="model.blocks.0.layers.layers.0", loss=LOSS, extra=SERIES),
}
