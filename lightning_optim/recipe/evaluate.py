"""Evaluation of a stage: accuracies of its exported file, sizes, and agreement with what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from lightning_optim.checked import checked
from lightning_optim.cost.count import count_bytes, count_macs, count_parameters
from lightning_optim.errors import ArtefactError, ExportError
from lightning_optim.export.fallbacks import Fallbacks
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.onnx_file.write import export_onnx
from lightning_optim.export.parity import check_parity
from lightning_optim.export.quantized import QuantizedExport
from lightning_optim.recipe.artefact import save_inputs
from lightning_optim.recipe.exported_forward import ExportedForward
from lightning_optim.recipe.stage import ExportingCallback
from lightning_optim.report.result import StageResult
from lightning_optim.surgery.example import FirstCall
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.select import find_network
from lightning_optim.surgery.torch_private import pytree

_MAX_ERROR = 1e-3  # of one computation in two orders of its sums


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Names under which the LightningModule logs accuracies, in ``[0, 1]``.

    Args:
        validation: Logged in ``validation_step``.
        test: Logged in ``test_step``.
    """

    validation: str = "val/accuracy"
    test: str = "test/accuracy"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageWriter:
    """Writer of a stage's ONNX file.

    Args:
        callbacks: Callbacks of the stage; the first that is an ``ExportingCallback`` writes the file.
        fallbacks: Whether what has no integer kernel may stay in floating point there.
        shapes: Which dimensions of the file's inputs are open.
    """

    callbacks: Sequence[Callback]
    fallbacks: Fallbacks = "named"
    shapes: OpenShapes = field(default_factory=OpenShapes)

    def write(self, path: Path, module: LightningModule, live: nn.Module, example: Example) -> float | None:
        """Write the file, and return the share of its multiply-accumulates in integers, if a callback tells it.

        Raises:
            ExportError: If the network cannot be exported, or not with these shapes.
        """
        (args, kwargs), dynamic, batch = example, self.shapes.dynamic, self.shapes.batch
        exporter = next((callback for callback in self.callbacks if isinstance(callback, ExportingCallback)), None)
        if exporter is None:
            export_onnx(live, args, path, kwargs=kwargs, dynamic=dynamic, batch=batch)
            self._check_other_sizes(path, live, example)
            return None
        written = exporter.export(path, module, args, kwargs, self.fallbacks, dynamic=dynamic, batch=batch)
        return written.integer_share if isinstance(written, QuantizedExport) else None

    def _check_other_sizes(self, path: Path, live: nn.Module, example: Example) -> None:
        """Refuse a file that does not compute the network at other sizes of its open dimensions."""
        with evaluating(live):
            sizes = self.shapes.other_sizes(live, example, lambda other: live(*other[0], **other[1]))
            others = [part for other in sizes for part in self.shapes.batches_of(other)]
            error = check_parity(live, path, others).relative_error if others else 0.0
        if not error <= _MAX_ERROR:
            raise ExportError(
                f"the file computes the network at the sizes of the data, and at others with a relative error of "
                f"{error:.3g}: its code has taken a size for a number; leave recipe.dynamic out, or mend the code"
            )


def evaluate(
    name: str,
    make_trainer: Callable[[list[Callback]], Trainer],
    module: LightningModule,
    data: LightningDataModule,
    writer: StageWriter,
    path: Path,
    *,
    metrics: Metrics,
    network: str | None,
) -> StageResult:
    """Export the module's network to ``path``, and measure the file in the module's own evaluation loops.

    Args:
        name: Name of the stage.
        make_trainer: Builds a Trainer with the stage's callbacks and those that it is given.
        module: The trained module.
        data: The data set.
        writer: Writes the file.
        path: The ONNX file to write.
        metrics: What the module logs.
        network: Name of the network in the module.

    Raises:
        ArtefactError: If the module does not log the metrics.
        ExportError: If the network cannot be exported.
    """
    live = find_network(module, network)[1]
    example = next(writer.shapes.batches_of(first_call(make_trainer, module, data, live)))
    integer_share = writer.write(path, module, live, example)
    inputs = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    save_inputs(path.with_name("inputs.safetensors"), inputs)
    exported = ExportedForward(live, path, writer.shapes)
    trainer = make_trainer([exported])
    validation = metric_of(
        trainer.validate(module, datamodule=data, verbose=False), metrics.validation, "metrics.validation"
    )
    exported.forget()
    tested = make_trainer([exported]).test(module, datamodule=data, verbose=False)
    test = metric_of(tested, metrics.test, "metrics.test")
    parity = exported.parity
    one = pytree.tree_map(_one_row, example)
    return StageResult(
        name=name,
        validation_accuracy=validation,
        test_accuracy=test,
        parameters=count_parameters(live),
        macs=count_macs(live, *one),
        bytes=count_bytes(path),
        agreement=parity.top1_agreement,
        relative_error=parity.relative_error,
        integer_share=integer_share,
    )


def first_call(
    make_trainer: Callable[[list[Callback]], Trainer],
    module: LightningModule,
    data: LightningDataModule,
    live: nn.Module,
) -> Example:
    """Return what the validation loop calls the network with first, for two rows.

    Raises:
        ArtefactError: If it never calls the network.
    """
    example = FirstCall()
    example.watch(live)
    try:
        make_trainer([]).validate(module, datamodule=data, verbose=False)
    finally:
        example.release()
    if not example:
        raise ArtefactError("the validation loop never called the network: set network to the part that it calls")
    on_cpu: Example = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, (example.args, example.kwargs))
    return on_cpu


def _one_row(leaf: Any) -> Any:
    return leaf[:1] if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 else leaf


def metric_of(results: Sequence[Mapping[str, float]], name: str, key: str) -> float:
    """Return what a loop of a Trainer has logged under ``name``, which the user has given as ``key``.

    Raises:
        ArtefactError: If there is no such name; the message lists those that there are.
    """
    for result in results:
        if name in result:
            return float(result[name])
    logged = sorted({key for result in results for key in result})
    raise ArtefactError(f"the module does not log {name!r}; it logs {logged}: set {key} to one of them")
