"""Regrowth in a fit: the smallest weights give way to others, at constant sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lightning_optim.callbacks.pruning.network import PrunedNetwork
from lightning_optim.callbacks.trainer.own_parameters import has_optimizer
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.pruning.regrow.base import Regrowth, decayed
from lightning_optim.pruning.regrow.functional import exchange
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.weight import Weight
from lightning_optim.surgery.parametrized import is_weight_normed
from lightning_optim.window import Window


@final
class Regrower:
    """Regrowth: at each jump of the window every mask is due, and is renewed before its optimizer's next step.

    There the gradients are final: accumulated, unscaled, the mean over the ranks.

    Args:
        setting: Which weights come back; ``None`` does nothing.
    """

    def __init__(self, setting: Regrowth | None) -> None:
        self._setting = setting
        self._jump: float | None = None
        self._due: set[str] = set()

    def check(self, structure: Structure, window: Window) -> None:
        """Refuse what cannot regrow.

        Raises:
            ValueError: If more than single weights fall together, or the window has no jump between its ends.
        """
        if self._setting is None:
            return
        if not isinstance(structure, Weight):
            raise ValueError(
                f"regrow needs single weights, got structure {type(structure).__name__!r}; choose 'Weight' or no regrow"
            )
        if window.every is None:
            raise ValueError("regrow needs a window with jumps, but window.every is None; set it")
        end = 1.0 if window.end is None and window.unit == "fraction" else window.end
        if end is not None and window.every >= (end - window.begin) * (1.0 - 1e-9):  # fractions are not exact
            raise ValueError(
                f"regrow acts at the jumps between the window's ends, but every={window.every:g} leaves none between "
                f"begin={window.begin:g} and end={end:g}; let it be smaller"
            )

    def check_layers(self, trainer: Trainer, layers: Mapping[str, nn.Module]) -> None:
        """Refuse layers whose rows go by their length, or that no optimizer of the trainer steps.

        Raises:
            ValueError: Naming one that goes by its length, or if there is no such optimizer.
        """
        if self._setting is not None and not has_optimizer(trainer):
            raise ValueError(
                "regrow acts before the steps of the trainer's optimizers, but none of these trains the network: "
                "return the one that the training step keeps to itself from configure_optimizers"
            )
        normed = [name for name, layer in layers.items() if self._setting is not None and is_weight_normed(layer)]
        if normed:
            raise ValueError(
                f"regrow needs weights of their own, but that of {normed[0]!r} is under weight normalization; leave it "
                "out in targets.exclude, or call torch.nn.utils.parametrize.remove_parametrizations on it first"
            )

    def note(self, progress: float, pruned: PrunedNetwork) -> None:
        """Mark the masks that are due at ``progress``, if that is a jump other than the first and the window's end."""
        if self._setting is None or progress == self._jump:
            return
        is_first = self._jump is None
        self._jump = progress
        self._due = set() if is_first or progress >= 1.0 else set(pruned.masks.kept())

    def regrow(self, trainer: Trainer, pl_module: LightningModule, pruned: PrunedNetwork, optimizer: Optimizer) -> None:
        """Renew the masks that are due among the weights of ``optimizer``; a collective call.

        Raises:
            ValueError: If a gradient is needed and there is none.
        """
        if self._setting is None or not self._due:
            return
        parameters, kept = pruned.parameters(pl_module), pruned.masks.kept()
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        renewed = {}
        for number, (name, parameter) in enumerate(parameters.items()):
            if name not in self._due or id(parameter) not in owned:
                continue
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return  # overflow in half precision: this step will be skipped, and the next one serves
            seed = trainer.global_step * len(parameters) + number
            try:
                growth_score = self._setting.growth_score(parameter.detach(), parameter.grad, seed)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            share = decayed(self._setting.fraction, self._jump or 0.0)
            renewed[name] = exchange(kept[name], parameter, growth_score, share)
        if renewed:
            self._due -= renewed.keys()
            pruned.regrow(trainer, pl_module, renewed)
            check_ranks_agree(trainer, pruned.masks.checksum(), "what comes back")

    def state_dict(self) -> dict[str, Any]:
        """Return the last jump, and the masks that are still due."""
        return {"jump": self._jump, "due": sorted(self._due)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._jump, self._due = state["jump"], set(state["due"])
