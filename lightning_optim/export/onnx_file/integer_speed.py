"""Speed of integer kernels on this processor, beside those in floating point."""

from __future__ import annotations

import functools
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from lightning_optim.cost.turns import Spread, speedup, time_in_turns
from lightning_optim.export.onnx_file.session import load_session
from lightning_optim.optional import require

_SECONDS = 0.4
# Dot products of 8-bit integers, by their names in Linux: x86, then Arm.
_INSTRUCTIONS = ("avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
_ON_MACOS = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerSpeed:
    """Speed of ONNX Runtime's int8 kernels on this processor, on one thread: times as fast as in floating point.

    Args:
        product: For a product of matrices.
        convolution: For a convolution.
        instructions: Instructions for dot products of 8-bit integers; ``None`` where the operating system does not
            tell.
    """

    product: Spread
    convolution: Spread
    instructions: tuple[str, ...] | None = None

    @property
    def pays(self) -> bool:
        """Whether both are faster in integers."""
        return self.product.is_gain and self.convolution.is_gain

    def __str__(self) -> str:
        has = "its instructions are not known" if self.instructions is None else ", ".join(self.instructions)
        if not (self.product.is_decided and self.convolution.is_decided):
            advice = "other work disturbed this measurement, and the report will have the times of the files themselves"
        elif self.pays:
            advice = "they pay"
        else:
            advice = "they may not pay: an int8 file is smaller, and can be slower than the float one before it"
        return (
            f"Integer kernels on this processor ({has or 'no instructions for 8-bit dot products'}): "
            f"{self.product.median:.1f} times as fast as floating point in a matrix product, "
            f"{self.convolution.median:.1f} times in a convolution; {advice}."
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    kind: str
    shape: Sequence[int]
    weight: Sequence[int]
    output: Sequence[int]
    attributes: Mapping[str, Any] = field(default_factory=dict)


_PRODUCT = _Kernel(kind="MatMul", shape=(64, 256), weight=(256, 256), output=(64, 256))
_CONVOLUTION = _Kernel(
    kind="Conv",
    shape=(1, 32, 16, 16),
    weight=(32, 32, 3, 3),
    output=(1, 32, 16, 16),
    attributes={"pads": [1, 1, 1, 1]},
)


@functools.cache
def measure_integer_speed() -> IntegerSpeed:
    """Time a small matrix product and a small convolution of ONNX Runtime, in int8 and in floating point, once.

    Raises:
        ExportError: If ``onnx`` or ``onnxruntime`` is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            f"{kernel.kind} {dtype}": _call(kernel, dtype, Path(folder, f"{kernel.kind}_{dtype}.onnx"))
            for kernel in (_PRODUCT, _CONVOLUTION)
            for dtype in ("float32", "uint8")
        }
    times = time_in_turns(calls, seconds=_SECONDS)
    product, convolution = (
        speedup(times[f"{kernel.kind} float32"], times[f"{kernel.kind} uint8"]) for kernel in (_PRODUCT, _CONVOLUTION)
    )
    return IntegerSpeed(product=product, convolution=convolution, instructions=_instructions())


def _call(kernel: _Kernel, dtype: str, path: Path) -> Callable[[], object]:
    """Write a file of one operator, load it and return a call of it."""
    onnx, random = require("onnx"), np.random.default_rng(0)
    is_float, helper = dtype == "float32", onnx.helper
    values = random.integers(-127, 128, kernel.weight).astype(np.float32 if is_float else np.int8)
    constants = {"weight": values}
    names = ["x", "weight"]
    if not is_float:
        constants |= {
            "scale": np.array(0.02, np.float32),
            "zero": np.array(128, np.uint8),
            "middle": np.array(0, np.int8),
        }
        names = ["x", "scale", "zero", "weight", "scale", "middle", "scale", "zero"]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node(kernel.kind if is_float else f"QLinear{kernel.kind}", names, ["y"], **kernel.attributes)],
        kernel.kind,
        [helper.make_tensor_value_info("x", element, kernel.shape)],
        [helper.make_tensor_value_info("y", element, kernel.output)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    session, rows = load_session(path), random.integers(0, 256, kernel.shape).astype(dtype)
    return lambda: session.run(rows)


def _instructions() -> tuple[str, ...] | None:
    """What the operating system tells of the processor; ``None`` if it does not."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        done = subprocess.run(["/usr/sbin/sysctl", *_ON_MACOS], capture_output=True, text=True, check=False)
        return tuple(name for key, name in _ON_MACOS.items() if f"{key}: 1" in done.stdout)
    cpuinfo = Path("/proc/cpuinfo")
    return _listed(cpuinfo.read_text()) if cpuinfo.is_file() else None


def _listed(cpuinfo: str) -> tuple[str, ...] | None:
    lines = [line for line in cpuinfo.splitlines() if line.split(":")[0].strip() in ("flags", "Features")]
    return tuple(name for name in _INSTRUCTIONS if name in lines[0].split()) if lines else None
