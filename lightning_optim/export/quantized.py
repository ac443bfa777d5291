"""Export of a simulated network to a file whose layers run as integer kernels, and the check that they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from lightning_optim.cost.timing import time_call
from lightning_optim.errors import ExportError
from lightning_optim.export.fallbacks import (
    Fallbacks,
    check_fallbacks,
    check_kernels,
    check_share,
    find_fallbacks,
    planned_share,
)
from lightning_optim.export.first_difference import first_difference
from lightning_optim.export.onnx_file.kernels import Kernels
from lightning_optim.export.onnx_file.open_shapes import OpenShapes
from lightning_optim.export.output_comparison import OutputParity
from lightning_optim.export.parity import Parity, as_inputs, check_parity
from lightning_optim.export.runtime.base import Runner, Runtime
from lightning_optim.export.runtime.onnxruntime import ONNXRuntime
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.torch_private import pytree

_TIE = 0.05  # classes that lie closer together than this part of all classes' range are not told apart by 8 bits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Acceptance criteria: what an exported file must show before it is moved to its path.

    Args:
        fallbacks: Whether what has no integer kernel may stay in floating point. ``"named"``: yes, and the result names
            it. ``"refused"``: nothing but excluded layers. A sequence: the kernels in it too, such as ``"Add"``.
        batches: Inputs on which the runtime is compared with the simulation: each a tensor, a sequence with one per
            positional input, or a mapping of keyword inputs. Without any, the example inputs.
        min_agreement: Smallest share of samples with the same class, in ``[0, 1]``, for every output that has classes.
        max_error: Largest relative error of every output, at least 0. A file differs from the simulation by the order
            of sums alone, whose last bit may turn a rounding: by 3 % after twelve transformer blocks in 8 bits.

    Raises:
        ValueError: If ``fallbacks`` is something else, ``min_agreement`` outside ``[0, 1]``, or ``max_error`` below 0.
    """

    fallbacks: Fallbacks = "named"
    batches: Iterable[Any] = ()
    min_agreement: float = 0.99
    max_error: float = 0.05

    def __post_init__(self) -> None:
        check_fallbacks(self.fallbacks)
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ValueError(f"min_agreement must be in [0, 1], got {self.min_agreement}")
        if not self.max_error >= 0.0:
            raise ValueError(f"max_error must be at least 0, got {self.max_error}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedExport:
    """Result of an export: what was written, and how its runtime runs it.

    Args:
        path: The file.
        runtime: Class of the runtime.
        num_bytes: Size of the file.
        kernels: Kernels that the runtime runs for the file.
        fallbacks: What stays in floating point -> why: keys of operators that multiply matrices, or are of a kind that
            integer kernels serve, and kernels that the runtime has left there.
        integer_share: Share of the multiply-accumulates that runs in integers, in ``[0, 1]``.
        parity: How closely the runtime's outputs match the simulation's.
        latency_ms: CPU time of one sample in the runtime, on one thread.
        dimensions: Open dimensions of every input of the file, in order, with their names; all others have the sizes of
            the example inputs alone.
    """

    path: Path
    runtime: str
    num_bytes: int
    kernels: Kernels
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    integer_share: float
    parity: Parity
    latency_ms: float
    dimensions: tuple[Mapping[int, str], ...] = ()


def export_quantized(
    simulator: Simulator,
    network: nn.Module,
    path: str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    runtime: Runtime | None = None,
    acceptance: Acceptance | None = None,
    shapes: OpenShapes | None = None,
) -> QuantizedExport:
    """Write a network to a file for a runtime, and check that it runs in integers there and computes as simulated.

    The live network stays as it is. The file is loaded in its runtime before it is moved to ``path``: its kernels are
    counted, and its outputs are compared with the simulation's.

    Args:
        simulator: Ranges and quantizers of the network.
        network: The trained network.
        path: The file to write.
        args: Example positional inputs of the network; without any, those of the recorded batch.
        kwargs: Example keyword inputs.
        runtime: The runtime; ``None`` is ONNX Runtime.
        acceptance: What the file must show.
        shapes: Which dimensions of the inputs are open; ``None`` opens the batch alone.

    Raises:
        ExportError: If the simulator has no ranges, or a scheme that the runtime does not know; if the network can't be
            exported; if nothing is multiplied in integers, or something is computed in floating point that may not; or
            if an output of the runtime is further from the simulation's than accepted.
    """
    runtime, acceptance, shapes = runtime or ONNXRuntime(), acceptance or Acceptance(), shapes or OpenShapes()
    if not simulator.is_ready:
        raise ExportError("there are no activation ranges yet: train at least two batches within the window")
    runtime.check(simulator)
    example = next(shapes.batches_of(_example(simulator, args, kwargs)))
    dimensions = shapes.dimensions_of(network, example)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.unchecked")
    try:
        kernels = runtime.write(simulator, network, example, part, shapes)
        check_kernels(kernels, runtime, simulator, acceptance.fallbacks)
        fallbacks = find_fallbacks(simulator, runtime, kernels)
        measured = runtime.integer_share(
            part, [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
        )
        share = planned_share(simulator, runtime) if measured is None else measured
        check_share(share, fallbacks, simulator, runtime)
        runner = runtime.load(part)
        parity = _check_agreement(simulator, network, runner, example, acceptance, shapes, runtime)
        latency_ms = 1e3 * time_call(call_of_one(runner, example, shapes.batch)) / (shapes.batch or 1)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return QuantizedExport(
        path=path,
        runtime=type(runtime).__name__,
        num_bytes=path.stat().st_size,
        kernels=kernels,
        fallbacks=fallbacks,
        integer_share=share,
        parity=parity,
        latency_ms=latency_ms,
        dimensions=tuple(dimensions),
    )


def _example(
    simulator: Simulator, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not args and not kwargs:
        if simulator.example is None:
            raise ExportError("an export needs example inputs of the network: pass args")
        args, kwargs = simulator.example
    inputs: tuple[tuple[Any, ...], dict[str, Any]] = _on_cpu((tuple(args), dict(kwargs or {})))
    return inputs


def _on_cpu(inputs: Any) -> Any:
    def move(leaf: Tensor) -> Tensor:
        return leaf.detach().cpu().float() if leaf.is_floating_point() else leaf.detach().cpu()

    return pytree.tree_map_only(Tensor, move, inputs)


def _check_agreement(
    simulator: Simulator,
    network: nn.Module,
    runner: Runner,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    acceptance: Acceptance,
    shapes: OpenShapes,
    runtime: Runtime,
) -> Parity:
    simulated = simulator.forward_of(copy_model(network).cpu().float())
    batches = [_on_cpu(batch) for batch in acceptance.batches]
    given = [_in_order(batch, example[1]) for batch in batches] or [Inputs(*example)]
    given = [Inputs(*part) for each in given for part in shapes.batches_of((each.args, each.kwargs))]
    given += [
        Inputs(*other) for other in shapes.other_sizes(network, example, lambda other: Inputs(*other).call(simulated))
    ]
    parity = check_parity(simulated, runner, given, tie=_TIE)
    failed = [fault for output in parity.outputs for fault in _faults(output, acceptance)]
    if failed:
        where = _where(simulator, network, given[0], acceptance) if isinstance(runtime, ONNXRuntime) else ""
        raise ExportError(
            f"the runtime does not compute what was simulated on {parity.num_samples} samples: {'; '.join(failed)}. "
            f"{where}Nothing was written. compare_layers() shows where the network loses most; leave such layers out "
            "with targets.exclude, or give wider bounds as max_error and min_agreement"
        )
    return parity


def _where(simulator: Simulator, network: nn.Module, inputs: Inputs, acceptance: Acceptance) -> str:
    """Say from which operator on the file differs, as far as that can be found out."""
    try:
        found = first_difference(simulator, network, (inputs.args, inputs.kwargs), acceptance.max_error)
    except Exception:  # the refusal stands, be it found or not
        return ""
    return "" if found is None else f"It differs from {found[0]} on, by a relative error of {found[1]:.4g}. "


def _faults(output: OutputParity, acceptance: Acceptance) -> Iterator[str]:
    """Say in what an output is not as close as it must be."""
    if math.isnan(output.relative_error):
        yield f"{output.name} holds NaN (at {list(output.worst)}), on one side or both"
    elif not output.relative_error <= acceptance.max_error:
        yield (
            f"{output.name} has a relative error of {output.relative_error:.4g}, max_error is {acceptance.max_error} "
            f"(at most {output.max_abs_error:.4g} off, at {list(output.worst)})"
        )
    agreement = output.top1_agreement
    if agreement is not None and not agreement >= acceptance.min_agreement:
        least = acceptance.min_agreement
        yield f"{output.name} has the same class in {agreement:.4f} of all places, min_agreement is {least}"


def _in_order(batch: Any, example_kwargs: Mapping[str, Any]) -> Inputs:
    """Arguments of a batch, keywords in the order of the file's inputs."""
    if not isinstance(batch, Mapping):
        return as_inputs(batch)
    given = Inputs.of(batch).kwargs
    if given.keys() != example_kwargs.keys():
        raise ExportError(f"a batch has keywords {sorted(given)}, the example has {sorted(example_kwargs)}")
    return Inputs((), {name: given[name] for name in example_kwargs})


def call_of_one(
    runner: Runner, example: tuple[tuple[Any, ...], dict[str, Any]], batch: int | None = None
) -> Callable[[], object]:
    """Return a function that runs a loaded file on the first sample of an example, or on the batch that it takes."""
    leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    size = len(leaves[0]) if leaves and leaves[0].dim() else 0
    rows = batch or 1
    one = [leaf[:rows].numpy() if leaf.dim() and len(leaf) == size else leaf.numpy() for leaf in leaves]
    return lambda: runner(*one)
