"""scvi-tools: models that train a plan of lightning.pytorch, whose child ``module`` is the network."""

from __future__ import annotations

import scvi
import torch
from lightning.pytorch import Callback

from clients.client import Client

DOOR = "file"


def scvi_model(callbacks: list[Callback]) -> None:
    """Train as the project's quick start shows."""
    scvi.settings.seed = torch.initial_seed()
    data = scvi.data.synthetic_iid(batch_size=64, n_genes=40)
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_hidden=32, n_latent=8)
    model.train(
        max_epochs=4, accelerator="cpu", batch_size=32, callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


LOSS = {"_target_": "clients.regression.MeanSquare"}
COUNTS = {"_target_": "torch.ones", "size": [2, 40]}
CODES = {"_target_": "torch.zeros", "size": [2, 1]}
EXAMPLE = {"search": {"example": [{"X": COUNTS, "batch": CODES, "labels": CODES}]}}
LAYER = "module.decoder.px_decoder.fc_layers.Layer 0.0"
CLIENTS = {"SCVI": Client(train=scvi_model, width=LAYER, loss=LOSS, extra=EXAMPLE)}
