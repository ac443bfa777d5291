"""Last good state of a network under pruning, to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_optim.callbacks.pruning.network import PrunedNetwork
from lightning_optim.callbacks.trainer.reshape import averaged_copies
from lightning_optim.pruning.masks import pack, unpack
from lightning_optim.surgery.snapshot import Snapshot

_SPARSE = 0.9  # below this share of other values, zeros are left out: a bit for each entry costs less


@final
class LastGoodState:
    """Last good state: weights, buffers, averaged copies, and what was pruned of them.

    Optimizers keep their moments when training goes back: these are averages over recent gradients of weights with the
    same shape, and would make the copy three times as large. A checkpoint holds the copy only if the live network has
    been trained since it was taken, and leaves zeros out of it.

    Args:
        pruned: The live network.
    """

    def __init__(self, pruned: PrunedNetwork) -> None:
        self._pruned = pruned
        self._snapshot = Snapshot()
        self._state: dict[str, Any] = {}
        self._is_live = False

    def __bool__(self) -> bool:
        return bool(self._snapshot)

    @property
    def reached(self) -> float | None:
        """The sparsity that it was asked for; ``None`` before the first pruning step."""
        reached: float | None = self._state["reached"]
        return reached

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the live network as good."""
        self._snapshot.take(pl_module, [], averaged_copies(trainer))
        self._state, self._is_live = self._pruned.state_dict(), True

    def note_training(self) -> None:
        """Note that the live network is about to change."""
        self._is_live = False

    def go_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the state back as it was; optimizers keep their moments, those that are finite."""
        pl_module.zero_grad(set_to_none=True)
        self._snapshot.put_back(pl_module, [], averaged_copies(trainer))
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._pruned.load_state_dict(pl_module, self._state)
        self._pruned.watch(trainer)
        self._is_live = True

    def give_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what was masked since, with its former values; all other weights stay as they are trained."""
        pl_module.zero_grad(set_to_none=True)
        prefix = f"{self._pruned.name}." if self._pruned.name else ""
        self._snapshot.put_back_masked(pl_module, self._pruned.masks.kept(), prefix, averaged_copies(trainer))
        self._pruned.load_state_dict(pl_module, self._state)
        self._pruned.watch(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and primitives; without a copy if the live network is the good one."""
        if self._is_live or not self._snapshot:
            return {"is_live": self._is_live}
        modules = [{name: _packed(tensor) for name, tensor in held.items()} for held in self._snapshot.modules]
        return {"is_live": False, "modules": modules, "pruned": dict(self._state)}

    def load_state_dict(self, trainer: Trainer, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, on a module and a record of pruning that are restored already."""
        if state["is_live"]:
            self.save(trainer, pl_module)
        elif "modules" in state:
            modules = [{name: _unpacked(entry) for name, entry in held.items()} for held in state["modules"]]
            self._snapshot.load_state_dict({"modules": modules, "moments": []})
            self._state, self._is_live = dict(state["pruned"]), False


def _packed(tensor: Tensor) -> Tensor | dict[str, Any]:
    keep = tensor != 0
    if not tensor.is_floating_point() or int(keep.sum()) >= _SPARSE * tensor.numel():
        return tensor
    return {"bits": pack(keep), "shape": list(tensor.shape), "values": tensor[keep]}


def _unpacked(entry: Tensor | Mapping[str, Any]) -> Tensor:
    if isinstance(entry, Tensor):
        return entry
    values = entry["values"]
    tensor = torch.zeros(entry["shape"], dtype=values.dtype, device=values.device)
    tensor[unpack(entry["bits"], entry["shape"]).to(values.device)] = values
    return tensor
