"""Forward pass of the exported model inside the user's own evaluation loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.errors import ExportError
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.onnx_file.session import Session, load_session
from lightning_optim.export.output_comparison import OutputComparison, named_tensors, num_samples
from lightning_optim.export.parity import Parity
from lightning_optim.surgery.containers import map_tensors, tensors_of
from lightning_optim.surgery.patch import Patches


@final
class ExportedForward(Callback):
    """Callback that computes every call of the network by its ONNX file, and compares every output of both.

    So the user's ``validation_step`` and ``test_step`` measure the file that is deployed. A file that takes one batch
    alone is run on parts of that many rows.

    Args:
        network: The network whose calls the file computes.
        path: The file.
        shapes: Which dimensions of its inputs are open.
    """

    def __init__(self, network: nn.Module, path: Path, shapes: OpenShapes) -> None:
        self._network, self._path, self._shapes = network, path, shapes
        self._patches = Patches()
        self._session: Session | None = None
        self._comparisons: dict[str, OutputComparison] = {}
        self._num_samples = 0

    @property
    def parity(self) -> Parity:
        """How closely the file computes every output.

        Raises:
            ExportError: If nothing was compared.
        """
        if not self._comparisons:
            raise ExportError(f"no sample went through {self._path.name}: does the evaluation loop call the network?")
        outputs = tuple(each.result() for each in self._comparisons.values())
        return Parity(outputs=outputs, num_samples=self._num_samples)

    def forget(self) -> None:
        """Forget what was compared."""
        self._comparisons, self._num_samples = {}, 0

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach()

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patches.undo()

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patches.undo()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._patches.undo()

    def _attach(self) -> None:
        # Attached last, so above the simulation that another callback has put around the same forward.
        self._session = load_session(self._path)
        self._patches.wrap(self._network, "forward", self._forward)

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        trained = named_tensors(output)
        found = dict(zip(trained, self._run((args, kwargs), [*trained.values()]), strict=True))
        self._num_samples += num_samples(found.values())
        for name, tensor in trained.items():
            self._comparisons.setdefault(name, OutputComparison(name)).add(tensor, found[name])
        tensors = iter(found.values())
        return map_tensors(lambda tensor: next(tensors).to(tensor), output)

    def _run(self, example: Example, trained: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the file, those of several batches joined to the shapes of the trained network's."""
        assert self._session is not None
        runs = []
        for part in self._shapes.batches_of(example):
            arrays = self._session.run(*(tensor.detach().cpu().numpy() for tensor in tensors_of(part)))
            runs.append([torch.from_numpy(array) for array in arrays])
        if self._shapes.batch is None:
            return runs[0]
        outputs = zip(trained, zip(*runs, strict=True), strict=True)
        return [torch.cat(parts)[: len(whole)] for whole, parts in outputs]
