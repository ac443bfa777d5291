"""Lightning's own demos, as they are; data of the test's own, since theirs is fetched."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, ManualOptimBoringModel, RandomDataset
from lightning.pytorch.demos.lstm import LightningLSTM
from lightning.pytorch.demos.transformer import LightningTransformer
from torch.utils.data import DataLoader, TensorDataset

from clients.client import Client

DOOR = "file"
VOCABULARY = 29


def fit(model: LightningModule, data: Any, callbacks: list[Callback]) -> None:
    """Train as a script does that knows nothing of this package."""
    model.prepare_data = lambda: None  # nothing is to be fetched
    trainer = Trainer(
        max_epochs=2, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)


def text() -> DataLoader:
    """Sequences and the same, one place further."""
    ids = torch.randint(VOCABULARY, (8, 7))
    return DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4)


def boring(callbacks: list[Callback]) -> None:
    fit(BoringModel(), DataLoader(RandomDataset(32, 64), batch_size=8), callbacks)


def manual(callbacks: list[Callback]) -> None:
    fit(ManualOptimBoringModel(), DataLoader(RandomDataset(32, 64), batch_size=8), callbacks)


def transformer(callbacks: list[Callback]) -> None:
    fit(LightningTransformer(vocab_size=VOCABULARY), text(), callbacks)


def lstm(callbacks: list[Callback]) -> None:
    fit(LightningLSTM(vocab_size=VOCABULARY), text(), callbacks)


IDS = {"_target_": "torch.ones", "size": [2, 6], "dtype": {"_target_": "hydra.utils.get_object", "path": "torch.long"}}
EXAMPLE = {"search": {"example": [{"_target_": "torch.zeros", "size": [2, 32]}]}}
FIRST = {"_target_": "lightning_optim.distillation.SoftTarget", "output": 0}
HIDDEN = {"_target_": "torch.zeros", "size": [4, 2, 512]}
CLIENTS = {
    "BoringModel": Client(train=boring, width="layer", extra=EXAMPLE),
    "ManualOptimBoringModel": Client(train=manual, width="layer", extra=EXAMPLE),
    "LightningTransformer": Client(
        train=transformer,
        width="model.transformer.encoder.layers.0.linear1",
        extra={"search": {"example": [IDS, IDS]}},
    ),
    "LightningLSTM": Client(
        train=lstm, width="model.decoder", loss=FIRST, extra={"search": {"example": [IDS, [HIDDEN, HIDDEN]]}}
    ),
}
