"""Network in an ONNX file, run by ONNX Runtime on tensors of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.distillation.place import OutputOnly
from lightning_optim.errors import ArtefactError, reason_of
from lightning_optim.optional import require

_KINDS = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


@final
class ONNXNetwork(OutputOnly):
    """Network in an ONNX file: takes tensors by name or in the file's order, computes on the CPU, and has no gradient.

    One output is returned as a tensor, several as a dictionary by name.

    Args:
        path: The file.

    Raises:
        ArtefactError: If the file is missing, or ONNX Runtime cannot run it.
    """

    reason = "an ONNX file gives its output alone: take a loss on outputs, or give the teacher as a module"

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise ArtefactError(f"{path} does not exist; give the path of an ONNX file")
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime derives each of its errors from Exception alone
            raise ArtefactError(f"{path} cannot be run by ONNX Runtime: {reason_of(error)}") from error
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]
        digest = hashlib.sha256(path.read_bytes()).digest()
        # In place of weights, so that ranks and caches can tell one file from another.
        self.register_buffer("fingerprint", torch.frombuffer(bytearray(digest), dtype=torch.int32).clone())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file on tensors.

        Raises:
            TypeError: If the inputs are not those of the file.
            ValueError: If a shape is not the file's.
        """
        given = self._named(args, kwargs)
        feed = {name: _as_array(tensor, self._inputs[name]) for name, tensor in given.items()}
        device = next((tensor.device for tensor in given.values()), torch.device("cpu"))
        answers = [torch.from_numpy(array).to(device) for array in self._session.run(None, feed)]
        return answers[0] if len(answers) == 1 else dict(zip(self._outputs, answers, strict=True))

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Tensors by the file's names: those that are named, then the others in the file's order."""
        named = {name: value for name, value in kwargs.items() if value is not None}
        free = [name for name in self._inputs if name not in named]
        given = {**dict(zip(free, args, strict=False)), **named}
        is_alike = given.keys() == self._inputs.keys() and len(args) <= len(free)
        if not is_alike or not all(isinstance(value, Tensor) for value in given.values()):
            came = [*(type(value).__name__ for value in args), *map(repr, named)]
            raise TypeError(
                f"the ONNX file takes {list(self._inputs)}, got {', '.join(came) or 'nothing'}: choose by "
                "input_map=FromBatch(...) what it is given"
            )
        return given

    @override
    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a session of ONNX Runtime cannot be copied or pickled: load the file again")


def _as_array(tensor: Tensor, wanted: Any) -> np.ndarray[Any, Any]:
    """An array of the type and shape that the file wants."""
    kind = _KINDS.get(wanted.type)
    if kind is None or kind.is_floating_point != tensor.is_floating_point():
        raise TypeError(f"input {wanted.name!r} of the ONNX file is a {wanted.type}, got a tensor of {tensor.dtype}")
    fits = len(wanted.shape) == tensor.dim() and all(
        not isinstance(size, int) or size == found for size, found in zip(wanted.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"input {wanted.name!r} of the ONNX file is {list(wanted.shape)}, got {list(tensor.shape)}: export the "
            "teacher with a dynamic batch, or set batch_size of the data to the file's, with drop_last=True"
        )
    return np.asarray(tensor.detach().cpu().to(kind).contiguous().numpy())
