"""Forward pass of the exported model inside the user's own evaluation loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.errors import ExportError
from lightning_optim.export.onnx_file.session import Session, load_session
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import pytree


@final
class ExportedForward(Callback):
    """Callback that computes every call of the network by its ONNX file, and counts how often both agree.

    So the user's ``validation_step`` and ``test_step`` measure the file that is deployed.
    """

    def __init__(self, network: nn.Module, path: Path) -> None:
        self._network, self._path = network, path
        self._patches = Patches()
        self._session: Session | None = None
        self.agreed = 0
        self.compared = 0

    @property
    def top1_agreement(self) -> float:
        """Share of samples on which trained and exported network have the same largest output, in ``[0, 1]``."""
        if not self.compared:
            raise ExportError(f"no sample went through {self._path.name}: does the evaluation loop call the network?")
        return self.agreed / self.compared

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
        assert self._session is not None
        leaves, structure = pytree.tree_flatten(original(*args, **kwargs))
        inputs = [
            leaf.detach().cpu().numpy() for leaf in pytree.tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)
        ]
        outputs = iter(self._session.run(*inputs))
        replaced = [torch.from_numpy(next(outputs)).to(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._compare(leaves, replaced)
        return pytree.tree_unflatten(replaced, structure)

    def _compare(self, trained: list[Any], exported: list[Any]) -> None:
        first, output = next((a, b) for a, b in zip(trained, exported, strict=True) if isinstance(a, Tensor))
        if first.dim() < 2:  # one number per sample has no largest entry
            return
        same = first.argmax(1) == output.argmax(1)
        self.agreed += int(same.sum())
        self.compared += same.numel()
