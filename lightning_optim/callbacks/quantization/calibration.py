"""Calibration on the inputs that a module's own validation gives its network."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_optim.quantization.simulation.calibration import Calibration, check_num_batches
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.inputs import Inputs


@final
class _BatchEnds(Callback):
    """Callback that tells a calibration where batches end."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._calibration.end_batch()


def calibrate_module(
    simulator: Simulator, module: LightningModule, network: nn.Module, data: Any, *, num_batches: int
) -> list[Inputs]:
    """Let a simulator learn operators and ranges from the module's own validation, on one device.

    Args:
        simulator: The simulator; what it knows already stays as it is.
        module: The trained module; its ``validation_step`` calls the network as it likes.
        network: The network in it.
        data: Loaders of validation batches, or a data module.
        num_batches: How many of each loader to take at most, at least 1.

    Returns:
        Arguments of the network's calls.

    Raises:
        ValueError: If there is no batch, or one holds NaN or infinities.
    """
    check_num_batches(num_batches)
    calibration = Calibration(simulator, network)
    source = {"datamodule" if isinstance(data, LightningDataModule) else "dataloaders": data}

    def run(limit: int) -> None:
        _trainer(limit, _BatchEnds(calibration)).validate(module, **source, verbose=False)

    calibration.learn(run, num_batches)
    return calibration.inputs


def _trainer(limit: int, callback: Callback) -> Trainer:
    return Trainer(
        devices=1,
        limit_val_batches=limit,
        callbacks=callback,
        inference_mode=False,  # training and export use what is kept, and can't use inference tensors
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
