"""Sessions of ONNX Runtime: exported models, run and timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from lightning_optim.errors import ArtefactError, reason_of
from lightning_optim.optional import require

Array = npt.NDArray[Any]
Example = Array | Sequence[Array]


@final
class Session:
    """Session of ONNX Runtime with one model; made by ``load_session``."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.input_names: tuple[str, ...] = tuple(value.name for value in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(value.name for value in session.get_outputs())

    def run(self, *arrays: Any) -> list[Array]:
        """Run one batch.

        Args:
            arrays: One array (or CPU tensor) per input, in the file's order.

        Returns:
            One array per output, in the file's order.

        Raises:
            ValueError: If the number of arrays is not the number of inputs.
        """
        if len(arrays) != len(self.input_names):
            raise ValueError(f"the model takes {len(self.input_names)} inputs {self.input_names}, got {len(arrays)}")
        feed = {name: np.asarray(array) for name, array in zip(self.input_names, arrays, strict=True)}
        outputs: list[Array] = self._session.run(None, feed)
        return outputs

    def predict(self, batches: Iterable[Any]) -> Array:
        """Run batch after batch (an array, or a sequence with one per input) and join the first outputs."""
        return np.concatenate([self.run(*_as_inputs(batch))[0] for batch in batches])

    def resize(self, example: Example, batch: int) -> tuple[Array, ...]:
        """Repeat the rows of an example up to a batch size, for the inputs whose batch is dynamic."""
        arrays = _as_inputs(example)
        return tuple(
            np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:]))) if isinstance(size, str) else array
            for array, size in zip(arrays, self._first_sizes(), strict=True)
        )

    def _first_sizes(self) -> list[Any]:
        return [(value.shape or [1])[0] for value in self._session.get_inputs()]


def load_session(path: str | Path, threads: int = 1) -> Session:
    """Load an ONNX file for the CPU.

    Args:
        path: The file.
        threads: Intra-op threads; one gives the steadiest times.

    Raises:
        ArtefactError: If the file is missing or no model that ONNX Runtime can run.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return Session(open_session(path, options))


def open_session(path: str | Path, options: Any) -> Any:
    """Open an ``onnxruntime.InferenceSession`` on the CPU; errors are those of ``load_session``."""
    runtime = require("onnxruntime")
    options.log_severity_level = 3
    if not Path(path).is_file():
        raise ArtefactError(f"no ONNX model at {path}: was the export finished?")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a class of its own per kind of fault
        reason = reason_of(error)
        raise ArtefactError(f"{path} is not a model that ONNX Runtime can run: {reason}") from error


@final
@dataclass(frozen=True, slots=True)
class Timing:
    """Median time of one call, in milliseconds.

    Args:
        wall_ms: On the clock.
        cpu_ms: Spent by the calling thread; with one intra-op thread, that is all of it. Steadier than the
            clock on a busy machine.
    """

    wall_ms: float
    cpu_ms: float


def time_models(
    paths: Mapping[str, str | Path],
    example: Example,
    batch_sizes: Sequence[int] = (1, 32),
    *,
    seconds: float = 1.0,
    threads: int = 1,
) -> dict[str, dict[int, Timing]]:
    """Time models side by side: all in one process, call by call in turn, so that a busy moment hits all alike.

    Args:
        paths: Name -> ONNX file; all take the same inputs.
        example: Input rows, one array or one per input; repeated up to each batch size.
        batch_sizes: Batches to time.
        seconds: Time to spend on each batch size, over all models; at least 9 rounds are run.
        threads: Intra-op threads.

    Returns:
        Name -> batch size -> median of the calls after a warm-up.
    """
    if not seconds > 0.0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    sessions = {name: load_session(path, threads) for name, path in paths.items()}
    timings: dict[str, dict[int, Timing]] = {name: {} for name in sessions}
    for batch in batch_sizes:
        calls = {name: (session, session.resize(example, batch)) for name, session in sessions.items()}
        for name, samples in _sample(calls, seconds).items():
            wall, cpu = zip(*samples, strict=True)
            timings[name][batch] = Timing(statistics.median(wall) * 1e3, statistics.median(cpu) * 1e3)
    return timings


def measure_latency(
    paths: Mapping[str, str | Path],
    example: Example,
    batch_sizes: Sequence[int] = (1, 32),
    *,
    seconds: float = 1.0,
    threads: int = 1,
) -> dict[str, dict[int, float]]:
    """Median wall time per call in milliseconds, name -> batch size -> ms; see ``time_models``."""
    timings = time_models(paths, example, batch_sizes, seconds=seconds, threads=threads)
    return {name: {batch: timing.wall_ms for batch, timing in of.items()} for name, of in timings.items()}


def _sample(
    calls: Mapping[str, tuple[Session, tuple[Array, ...]]], seconds: float
) -> dict[str, list[tuple[float, float]]]:
    for session, arrays in calls.values():
        for _ in range(5):  # the first calls allocate and pack weights
            session.run(*arrays)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    order, collecting = list(calls), gc.isenabled()
    gc.disable()
    try:
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < 9 or time.perf_counter() < end:
            for name in order:
                samples[name].append(_time_call(*calls[name]))
            order.append(order.pop(0))  # no model always runs after the same one, on its warm or cold cache
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return samples


def _time_call(session: Session, arrays: tuple[Array, ...]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    session.run(*arrays)
    return time.perf_counter() - wall, time.thread_time() - cpu


def _as_inputs(example: Any) -> tuple[Array, ...]:
    """Arrays of an example, one per input; tensors become arrays."""
    arrays = example if isinstance(example, (list, tuple)) else (example,)
    return tuple(np.asarray(array) for array in arrays)
