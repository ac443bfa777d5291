"""Watch of a fit: what the network computes and weighs, seen from outside."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from clients.client import VALUES
from clients.counting import Products, parameters_of


class Watch(Callback):
    """Watch: losses of the steps, widths of one layer, and the operands of the last step's products.

    Args:
        width: Name of the layer.
        reads_products: Whether to look at the products.
    """

    def __init__(self, width: str, *, reads_products: bool = False) -> None:
        self.width, self.reads_products = width, reads_products
        self.losses: list[float] = []
        self.widths: set[int] = set()
        self.parameters = 0
        self.module: LightningModule | None = None
        self.products: Products | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return self  # a client that trains copies of its callbacks is seen too

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module, self.parameters = pl_module, parameters_of(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.get_submodule(self.width).register_forward_hook(self._note_width)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.reads_products:
            self.products = Products(pl_module, VALUES)
            self.products.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.reads_products and self.products is not None:
            self.products.__exit__(None, None, None)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.losses.append(float(loss))

    def _note_width(self, layer: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            is_image = type(layer).__name__ in ("Conv1d", "Conv2d")
            self.widths.add(output.shape[1 if is_image else -1])
