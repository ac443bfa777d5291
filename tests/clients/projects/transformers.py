"""transformers: models by their configuration, in the LightningModule that a user writes around one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from clients.client import Client

DOOR = "file"
VOCABULARY, LENGTH = 64, 12


class Wrapper(LightningModule):
    """What such a module looks like in tutorials."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> Any:
        return self.model(**batch)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self(**batch).loss
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def text(labels: str) -> list[dict[str, torch.Tensor]]:
    """Sequences, with a label each or one at each place."""
    ids = torch.randint(2, VOCABULARY, (64, LENGTH))
    target = {"sequence": ids[:, 0] % 4, "token": ids}[labels]
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [{"input_ids": x, "attention_mask": mask, "labels": y} for x, y in zip(ids, target, strict=True)]


def images() -> list[dict[str, torch.Tensor]]:
    """Images with a label each."""
    return [{"pixel_values": torch.randn(3, 16, 16), "labels": torch.tensor(index % 4)} for index in range(64)]


def fit(model: torch.nn.Module, data: list[dict[str, torch.Tensor]], callbacks: list[Callback]) -> None:
    """Train as a script does that knows nothing of this package."""
    trainer = Trainer(
        max_epochs=3, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Wrapper(model), DataLoader(data, batch_size=16))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def bert(callbacks: list[Callback]) -> None:
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_labels=4, **SMALL)
    fit(transformers.BertForSequenceClassification(config), text("sequence"), callbacks)


def gpt2(callbacks: list[Callback], **settings: bool) -> None:
    sizes = {"n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **settings)
    fit(transformers.GPT2LMHeadModel(config), text("token"), callbacks)


def llama(callbacks: list[Callback], **settings: bool) -> None:
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SMALL, **settings)
    fit(transformers.LlamaForCausalLM(config), text("token"), callbacks)


def vit(callbacks: list[Callback]) -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=4, **SMALL)
    fit(transformers.ViTForImageClassification(config), images(), callbacks)


def t5(callbacks: list[Callback], **settings: bool) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes, **settings)
    fit(transformers.T5ForConditionalGeneration(config), text("token"), callbacks)


def node(*size: int, **more: Any) -> dict[str, Any]:
    """An example's tensor in a configuration."""
    return {"_target_": "torch.ones", "size": list(size), **more}


LONG = {"_target_": "hydra.utils.get_object", "path": "torch.long"}
IDS = node(2, LENGTH, dtype=LONG)
TEXT = {"search": {"example": {"input_ids": IDS, "attention_mask": IDS}}}
TEXTS = {"search": {"example": {"input_ids": IDS, "attention_mask": IDS, "labels": IDS}}}
IMAGE = {"search": {"example": {"pixel_values": node(2, 3, 16, 16)}}}
LOGITS = {"_target_": "lightning_optim.distillation.SoftTarget", "output": "logits"}
PLACES = {**LOGITS, "class_dim": -1}

MLP, DENSE = "model.model.layers.0.mlp.up_proj", "model.encoder.block.0.layer.1.DenseReluDense.wi"
CLIENTS = {
    "BERT": Client(train=bert, width="model.bert.encoder.layer.0.intermediate.dense", loss=LOGITS, extra=TEXT),
    "GPT-2": Client(train=gpt2, width="model.transformer.h.0.mlp.c_fc", loss=PLACES, extra=TEXT),
    "GPT-2, use_cache=False": Client(
        train=partial(gpt2, use_cache=False), width="model.transformer.h.0.mlp.c_fc", loss=PLACES, extra=TEXT
    ),
    "Llama": Client(train=llama, width=MLP, loss=PLACES, extra=TEXT),
    "Llama, use_cache=False": Client(train=partial(llama, use_cache=False), width=MLP, loss=PLACES, extra=TEXT),
    "ViT": Client(train=vit, width="model.vit.layers.0.mlp.fc1", loss=LOGITS, extra=IMAGE),
    "T5": Client(train=t5, width=DENSE, loss=PLACES, extra=TEXTS),
    "T5, use_cache=False": Client(train=partial(t5, use_cache=False), width=DENSE, loss=PLACES, extra=TEXTS),
}
