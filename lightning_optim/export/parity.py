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
from lightning_optim.export.output_comparison import OutputComparison, OutputParity, named_tensors, num_samples
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.inputs import Inputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Parity: how closely the outputs of an exported model match those of the trained one.

    Args:
        outputs: One entry an output, in the order in which the model returns them.
        num_samples: Samples compared.
    """

    outputs: tuple[OutputParity, ...]
    num_samples: int

    @property
    def top1_agreement(self) -> float | None:
        """Smallest agreement of any output that has classes, in ``[0, 1]``; ``None`` if none has."""
        return min((each.top1_agreement for each in self.outputs if each.top1_agreement is not None), default=None)

    @property
    def relative_error(self) -> float:
        """Largest relative error of any output; NaN if one is."""
        return _largest(each.relative_error for each in self.outputs)

    @property
    def max_abs_error(self) -> float:
        """Largest difference of any value of any output; NaN if one is."""
        return _largest(each.max_abs_error for each in self.outputs)

    @property
    def exact_fraction(self) -> float:
        """Smallest share of any output's values that are equal bit for bit, in ``[0, 1]``."""
        return min(each.exact_fraction for each in self.outputs)


@torch.no_grad()
def check_parity(
    model_forward: Callable[..., Any],
    exported: str | Path | Callable[..., Any],
    batches: Iterable[Any],
    *,
    tie: float = 0.0,
) -> Parity:
    """Run both models on the same batches and compare every output.

    Real numbers of at least two dimensions have classes: along dimension 1 and along the last one, where these hold
    more than one entry, since the shape does not tell which. A map of one channel has none.

    Args:
        model_forward: The trained model in evaluation mode; called with a batch's tensors.
        exported: The exported ONNX file; or a function of one tensor per input, in the order in which the batch holds
            them, that returns an array for each output.
        batches: Each a tensor, a sequence with one tensor per input, or a pair of positional (a tuple) and keyword
            inputs (a dict); labels not included.
        tie: Two classes count as the same if the trained model's values of them differ by at most this part of the
            distance between its largest and its smallest value there.

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
    comparisons: dict[str, OutputComparison] = {}
    samples = 0
    for batch in batches:
        outputs = _outputs(model_forward, run, as_inputs(batch))
        samples += num_samples(trained for _, trained, _ in outputs)
        for name, trained, found in outputs:
            comparisons.setdefault(name, OutputComparison(name, tie)).add(trained, found)
    if not samples:
        raise ExportError("parity needs at least one batch to compare, got none")
    return Parity(outputs=tuple(each.result() for each in comparisons.values()), num_samples=samples)


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


def _outputs(
    model_forward: Callable[..., Any], run: Callable[..., Any], inputs: Inputs
) -> list[tuple[str, Tensor, Tensor]]:
    trained = named_tensors(inputs.call(model_forward))
    tensors = [tensor.cpu() for tensor in tensors_of((inputs.args, inputs.kwargs))]
    exported = [torch.from_numpy(array) for array in run(*tensors)]
    shapes = [tuple(leaf.shape) for leaf in trained.values()], [tuple(leaf.shape) for leaf in exported]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the trained model gives outputs of shape {shapes[0]}, the exported one {shapes[1]}")
    return [(name, leaf, found) for (name, leaf), found in zip(trained.items(), exported, strict=True)]


def _largest(values: Iterable[float]) -> float:
    return float(torch.tensor([*values]).amax())  # unlike max, it keeps NaN
