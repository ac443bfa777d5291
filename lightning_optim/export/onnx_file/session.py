"""Sessions of ONNX Runtime: exported models, run and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from lightning_optim.cost.turns import Timing, time_in_turns
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
        self.input_shapes: dict[str, tuple[int | str, ...]] = {
            value.name: tuple(value.shape) for value in session.get_inputs()
        }

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


def time_models(
    paths: Mapping[str, str | Path],
    example: Example,
    batch_sizes: Sequence[int] = (1, 32),
    *,
    seconds: float = 1.0,
) -> dict[str, dict[int, Timing]]:
    """Time models side by side, in one process and on one thread; see ``lightning_optim.cost.turns.time_in_turns``.

    Args:
        paths: Name -> ONNX file; all take the same inputs.
        example: Input rows, one array or one per input; repeated up to each batch size.
        batch_sizes: Batches to time.
        seconds: Time to spend on each batch size, over all models; at least nine turns are taken.

    Returns:
        Name -> batch size -> times of a call.
    """
    sessions = {name: load_session(path) for name, path in paths.items()}
    timings: dict[str, dict[int, Timing]] = {name: {} for name in sessions}
    for batch in batch_sizes:
        calls = {name: _call_of(session, session.resize(example, batch)) for name, session in sessions.items()}
        for name, timing in time_in_turns(calls, seconds=seconds).items():
            timings[name][batch] = timing
    return timings


def _call_of(session: Session, arrays: tuple[Array, ...]) -> Callable[[], object]:
    return lambda: session.run(*arrays)


def _as_inputs(example: Any) -> tuple[Array, ...]:
    """Arrays of an example, one per input; tensors become arrays."""
    arrays = example if isinstance(example, (list, tuple)) else (example,)
    return tuple(np.asarray(array) for array in arrays)
