"""Parity of the exported model with the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.errors import ExportError
from lightning_optim.export.onnx_file.session import load_session
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.torch_private import pytree


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Parity: how closely the outputs of an exported model match those of the trained one.

    Args:
        top1_agreement: Share of samples whose largest entry of the first output (over dimension 1) is the
            same, in ``[0, 1]``.
        max_abs_error: Largest difference of any output value.
        exact_fraction: Share of output values that are equal bit for bit, in ``[0, 1]``.
        num_samples: Samples compared.
    """

    top1_agreement: float
    max_abs_error: float
    exact_fraction: float
    num_samples: int


@torch.no_grad()
def check_parity(
    model_forward: Callable[..., Any], exported: str | Path | Callable[..., Any], batches: Iterable[Any]
) -> Parity:
    """Run both models on the same batches and compare their outputs.

    Args:
        model_forward: The trained model in evaluation mode; called with a batch's tensors.
        exported: The exported ONNX file; or a function of one tensor per input, in the order in which the batch holds
            them, that returns an array for each output.
        batches: Each a tensor, a sequence with one tensor per input, or a pair of positional (a tuple) and keyword
            inputs (a dict); labels not included.

    Raises:
        ExportError: If there is no batch, or the outputs differ in number or shape.
        ArtefactError: If the file is missing or no model.

    Example:
        >>> import tempfile
        >>> from lightning_optim.export import export_onnx
        >>> model, batch = torch.nn.Linear(3, 2).eval(), torch.ones(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(model, (batch,), f"{folder}/model.onnx")
        ...     check_parity(model, path, [batch]).top1_agreement
        1.0
    """
    run = exported if callable(exported) else load_session(exported).run
    agreed = exact = values = samples = 0
    errors = [torch.zeros(())]
    for batch in batches:
        for position, (trained, found) in enumerate(_outputs(model_forward, run, as_inputs(batch))):
            if position == 0:
                agreed += int((_top1(trained) == _top1(found)).sum())
                samples += _top1(trained).numel()
            exact += int((trained == found).sum())
            values += trained.numel()
            errors.append((trained.double() - found.double()).abs().amax().float())
    if not samples:
        raise ExportError("parity needs at least one batch to compare, got none")
    return Parity(
        top1_agreement=agreed / samples,
        max_abs_error=float(torch.stack(errors).amax()),
        exact_fraction=exact / values,
        num_samples=samples,
    )


def as_inputs(batch: Any) -> Inputs:
    """Arguments of a batch of the form that ``check_parity`` takes.

    Example:
        >>> as_inputs([1, 2]), as_inputs(((1,), {"gain": 2}))
        (Inputs(args=(1, 2), kwargs={}), Inputs(args=(1,), kwargs={'gain': 2}))
    """
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], dict):
        return Inputs(*batch)
    # The keys of a mapping are not names of the file's inputs: it is one input, with several tensors.
    return Inputs((batch,)) if isinstance(batch, Mapping) else Inputs.of(batch)


def _outputs(model_forward: Callable[..., Any], run: Callable[..., Any], inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    trained = [leaf.cpu() for leaf in pytree.tree_leaves(inputs.call(model_forward)) if isinstance(leaf, Tensor)]
    tensors = [leaf.cpu() for leaf in pytree.tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    exported = [torch.from_numpy(array) for array in run(*tensors)]
    shapes = [tuple(leaf.shape) for leaf in trained], [tuple(leaf.shape) for leaf in exported]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the trained model gives outputs of shape {shapes[0]}, the exported one {shapes[1]}")
    return list(zip(trained, exported, strict=True))


def _top1(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1) if logits.ndim > 1 else logits
