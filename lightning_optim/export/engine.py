"""Engine that measures latency in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.cost.engine import Engine
from lightning_optim.cost.timing import time_call
from lightning_optim.export.onnx_file.session import load_session
from lightning_optim.export.onnx_file.write import export_onnx
from lightning_optim.surgery.torch_private import pytree


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ONNXRuntimeEngine(Engine):
    """Engine that exports the network and runs it in ONNX Runtime, on one thread of the CPU."""

    @override
    def __call__(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            session = load_session(export_onnx(network, args, Path(folder, "model.onnx"), kwargs=kwargs))
            arrays = [leaf.numpy() for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
            return time_call(lambda: session.run(*arrays))
