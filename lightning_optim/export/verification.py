"""Verification of an exported file: its integer kernels, emulated, against ONNX Runtime, value by value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.errors import ExportError
from lightning_optim.export.emulator.arithmetic import Integers
from lightning_optim.export.emulator.graph import IntegerGraph
from lightning_optim.export.onnx_file.session import load_session


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Verification of a file: how closely ONNX Runtime's outputs match those of the emulated integer kernels.

    Args:
        compared: Output values compared.
        equal: How many of them are equal bit for bit.
        worst_lsb: Largest difference in steps of the output's scale, over outputs that are rounded.
        worst_error: Largest difference of any output value.
        computed: ONNX operator -> number of nodes that the emulator computed in integers.
    """

    compared: int
    equal: int
    worst_lsb: float
    worst_error: float
    computed: Mapping[str, int]

    @property
    def exact_fraction(self) -> float:
        """Share of output values that are equal bit for bit, in ``[0, 1]``."""
        return self.equal / self.compared


@torch.no_grad()
def verify(path: str | Path, batches: Iterable[Any]) -> Verification:
    """Run an exported file in ONNX Runtime and in an emulator of its integer kernels, and compare.

    The outputs of a network that runs in integers from end to end must be equal bit for bit. Between floating-point
    operators, such as a transformer's normalizations, sums may be taken in another order, and a value may round the
    other way. Processors without VNNI saturate on weights that are not portable (see ``Symmetric``), which makes a
    difference, too.

    Args:
        path: The file, as written for ONNX Runtime.
        batches: Each a tensor or an array, or a sequence with one per input; labels not included.

    Raises:
        ExportError: If there is no batch, or an output has another shape.
        ArtefactError: If the file is missing, no model, or has an operator whose integer form is not known.
    """
    session, graph = load_session(path), IntegerGraph(path)
    compared = equal = 0
    worst_lsb = worst_error = 0.0
    for batch in batches:
        arrays = batch if isinstance(batch, (list, tuple)) else (batch,)
        for value, array in zip(graph.run(*arrays), session.run(*arrays), strict=True):
            expected, found = _values(value), torch.from_numpy(array)
            if expected.shape != found.shape:
                raise ExportError(f"shapes differ: {tuple(expected.shape)} in integers, {tuple(found.shape)} deployed")
            compared, equal = compared + found.numel(), equal + int((expected == found).sum())
            error = float((expected.double() - found.double()).abs().amax()) if found.numel() else 0.0
            worst_error = max(worst_error, error)
            if isinstance(value, Integers):
                worst_lsb = max(worst_lsb, error / float(value.qparams.scale))
    if not compared:
        raise ExportError("verification needs at least one batch to compare, got none")
    return Verification(
        compared=compared, equal=equal, worst_lsb=worst_lsb, worst_error=worst_error, computed=dict(graph.computed)
    )


def _values(value: Tensor | Integers) -> Tensor:
    return value.values() if isinstance(value, Integers) else value
