"""Sharpness-aware training: each gradient is taken where the loss around the weights is higher."""

from __future__ import annotations

from typing import Any, ClassVar, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.regularization.two_pass_step import TwoPassStep
from lightning_optim.callbacks.trainer.clock import FitProgress
from lightning_optim.callbacks.trainer.lightning_private import ddp_settings
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.callbacks.trainer.reshape import Reshaper
from lightning_optim.checked import checked
from lightning_optim.errors import TapError, TargetError
from lightning_optim.regularization.selection import select_layers
from lightning_optim.regularization.sharpness.base import Sharpness
from lightning_optim.regularization.sharpness.sam import SAM
from lightning_optim.surgery.select import Targets, check_initialized, find_network
from lightning_optim.window import Window


@final
@checked
class SharpnessAware(TechniqueCallback):
    """Sharpness-aware training (SAM, ASAM): each training step runs twice, the second time at moved weights.

    The first pass tells where the loss is higher; the optimizer gets the gradient of the second one, and the weights
    are as they were, bit for bit. Both passes are the whole step: the same losses of other callbacks, masks, roundings
    and random numbers. What is logged, batch-norm statistics, metrics of the module, evidence of pruning and ranges of
    quantization are those of the first pass alone; so is what a step returns beside its loss. What learns inside
    transfer losses, and the learned steps of quantizers, are not moved, and get the second pass's gradient. Weights
    that ``PruningScheduler`` has masked are left out, and stay at zero.

    Under gradient accumulation each batch moves the weights on its own, and on several ranks each rank does so with the
    gradient of its own data (m-SAM); gradients of the second pass are averaged as ever. Clipping sees these alone. In
    half precision the loss is scaled before the first gradient too. Where that gradient is not finite, nothing moves.

    Under manual optimization the code of a step runs twice up to ``manual_backward``, which it must call once, before
    any optimizer's step; the rest runs once. Generators that a module holds by itself (``torch.Generator``), and
    metrics that lie in no module, are not put back for the second pass. ``on_before_zero_grad`` and
    ``on_before_backward`` see moved weights, every other hook sees the weights.

    How much higher the second loss is, is logged as ``regularization/sharpness``.

    Args:
        sharpness: Where to move the weights; ``SAM()`` by default.
        targets: Layers whose weights move, by names relative to the LightningModule; all of them by default. What is
            frozen, or in no optimizer, does not move.
        network: Name of the network in the LightningModule, ``""`` for the LightningModule itself; ``None`` finds it.
            Only its weights move.
        window: When to do so; before it opens, steps are plain. ``None`` is the whole fit.
        name: Tells several instances in one Trainer apart. Logs become ``regularization/<name>/sharpness``.

    Raises:
        TypeError: If a setting is of another kind.

    Example:
        >>> from lightning_optim.regularization import ASAM
        >>> callback = SharpnessAware(sharpness=ASAM(rho=1.0))
        >>> callback.state_key
        "SharpnessAware{'name': None}"
    """

    repeats_steps: ClassVar[bool] = True

    def __init__(
        self,
        *,
        sharpness: Sharpness | None = None,
        targets: Targets | None = None,
        network: str | None = None,
        window: Window | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.sharpness: Sharpness = SAM() if sharpness is None else sharpness
        self.targets, self.network = targets or Targets(), network
        self.window = Window() if window is None and self.sharpness.has_schedule else window
        self._progress = None if self.window is None else FitProgress(self.window)
        self._step = TwoPassStep(is_due=self._begin_step, weights=self._weights, moves=self._moves, note=self._note)
        self._trainer: Trainer | None = None
        self._layers: list[nn.Module] = []
        self._rho = 0.0

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.release()
        find_network(pl_module, self.network, needs_forward=False)
        _check_trainer(trainer)
        self._trainer = trainer
        self._step.attach(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(pl_module)
        check_ranks_agree(trainer, (self.sharpness, self.targets, self.window), "the settings of SharpnessAware")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress is not None:
            self._progress.check(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_moved, self._step.has_moved = self._step.has_moved, False
        if not has_moved and self._rho and not pl_module.automatic_optimization:
            raise TapError(
                "no training step of this epoch called self.manual_backward, so no weight was moved: call it in place "
                "of loss.backward()"
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._progress is None else {"progress": self._progress.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._progress is not None and "progress" in state_dict:
            self._progress.load_state_dict(state_dict["progress"])

    @override
    def release(self) -> None:
        self._step.detach()
        self._trainer, self._layers, self._rho = None, [], 0.0

    def _attach(self, pl_module: LightningModule) -> None:
        """Find the layers, once every callback has set its own structure up."""
        if self._layers:
            return
        name, network = find_network(pl_module, self.network, needs_forward=False)
        check_initialized(network, name)
        self._layers = select_layers(pl_module, network, self.targets, self.sharpness.parameter_names)
        if not self._weights():
            raise TargetError("no targeted weight is trained, so none would move: target what an optimizer trains")

    def _begin_step(self) -> bool:
        assert self._trainer is not None
        self._attach(self._trainer.lightning_module)  # Lightning's learning-rate finder trains before on_fit_start
        progress = 1.0 if self._progress is None else self._progress.read(self._trainer)
        self._rho = 0.0 if progress is None else self.sharpness.rho_at(progress)
        return self._rho > 0.0

    def _weights(self) -> list[nn.Parameter]:
        """What is trained now of the targeted layers' weights, each once."""
        assert self._trainer is not None
        groups = [group["params"] for optimizer in self._trainer.optimizers for group in optimizer.param_groups]
        trained = {id(weight) for weights in groups for weight in weights}
        names = [(layer, name) for layer in self._layers for name in self.sharpness.parameter_names(layer)]
        found = {id(weight): weight for weight in (layer.get_parameter(name) for layer, name in names)}
        return [weight for key, weight in found.items() if weight.requires_grad and (not trained or key in trained)]

    def _moves(self, weights: list[nn.Parameter], gradients: list[Tensor]) -> list[Tensor]:
        assert self._trainer is not None
        masks: dict[nn.Parameter, Tensor] = {}
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]  # set by the trainer
            for weight, mask in callback.masks().items() if isinstance(callback, TechniqueCallback) else ():
                masks[weight] = masks[weight] * mask if weight in masks else mask
        kept = [
            gradient * masks[weight] if weight in masks else gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        return self.sharpness.moves(weights, kept, self._rho)

    def _note(self, first: Tensor, second: Tensor) -> None:
        assert self._trainer is not None
        self._trainer.lightning_module.log(self.metric("regularization", "sharpness"), second - first)


def _check_trainer(trainer: Trainer) -> None:
    Reshaper.check_whole(trainer, "moved weights")
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
    if sum(isinstance(callback, SharpnessAware) for callback in callbacks) > 1:
        raise ValueError(
            "two SharpnessAware would take steps at weights that are moved twice: use one, with its targets"
        )
    if (ddp_settings(trainer) or {}).get("static_graph"):
        raise ValueError(
            "SharpnessAware takes two passes in a step, and DDP with static_graph=True counts on one: leave it out"
        )
