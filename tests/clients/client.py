"""Clients: what a project trains, in its own way, and the configuration of each callback for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback

VALUES = 16  # of weights of 4 bits


@dataclass(frozen=True, kw_only=True)
class Client:
    """One network of a project.

    Args:
        train: Builds and trains the network by the project's own interface, with callbacks for its Trainer.
        width: Name of a layer within the LightningModule whose channels a search may vary.
        loss: Transfer loss, as a node with ``_target_``.
        extra: Further settings of each callback that this network needs, by the key of the callback.
    """

    train: Callable[[list[Callback]], object]
    width: str
    loss: Mapping[str, Any] = field(default_factory=lambda: {"_target_": "lightning_optim.distillation.SoftTarget"})
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def configurations(client: Client, teacher: str) -> dict[str, dict[str, Any]]:
    """Nodes of the callbacks for a client, by what they do."""
    half = {"_target_": "lightning_optim.schedule.Iterative", "end": 0.5}
    quantizer = {"_target_": "lightning_optim.quantization.Symmetric", "bits": 4}
    checkpoint = {"_target_": "lightning_optim.distillation.Checkpoint", "path": teacher}
    width = {
        "_target_": "lightning_optim.nas.ElasticWidth",
        "targets": {"_target_": "lightning_optim.Targets", "include": [client.width]},
        "fractions": [0.5, 1.0],
    }
    nodes: dict[str, dict[str, Any]] = {
        "weights": {"_target_": "lightning_optim.PruningScheduler", "schedule": half},
        "channels": {
            "_target_": "lightning_optim.PruningScheduler",
            "schedule": half,
            "structure": {"_target_": "lightning_optim.pruning.Channel"},
        },
        "quantization": {"_target_": "lightning_optim.QATFakeQuant", "weight_quantizer": quantizer},
        "distillation": {
            "_target_": "lightning_optim.DistillationTeacher",
            "teacher": checkpoint,
            "losses": dict(client.loss),
            "hard_weight": 1.0,
            "weight": 1.0,
        },
        "search": {"_target_": "lightning_optim.NASSupernet", "search_at": "call", "space": {"width": width}},
    }
    return {key: {**node, "_convert_": "all", **client.extra.get(key, {})} for key, node in nodes.items()}
