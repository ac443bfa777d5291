"""Reshaping of a model in the middle of a fit, with optimizers, averaged copies and the DDP wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_optim.callbacks.trainer.lightning_private import averaged_model
from lightning_optim.callbacks.trainer.network_copies import kept_copies
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.surgery.cut import CutPlan, apply_cut
from lightning_optim.surgery.masked_norm import mask_norms
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.rebind import check_cut, check_optimizer, rebind_module, rebind_optimizer
from lightning_optim.surgery.resize import resize, sizes_of
from lightning_optim.surgery.select import find_network, named_modules, plain_name, submodule, unwrapped
from lightning_optim.surgery.shrunk_checkpoint import cuts_in, mark_shrunk, norms_in
from lightning_optim.surgery.torch_private import uncompiled


@final
class Reshaper:
    """Reshaping: removes channels of a live network, and gives a fresh network the shape of a checkpoint."""

    def __init__(self) -> None:
        self._patches = Patches()
        self._copies: list[nn.Module] = []
        self._num_attached = 0

    def follow(self, *copies: nn.Module) -> None:
        """Keep copies of the network, which the user holds, in the network's shape.

        Raises:
            TypeError: If one is no module.
        """
        for copy in copies:
            if not isinstance(copy, nn.Module):
                raise TypeError(
                    f"follow needs a module with the network's names, got {type(copy).__name__}: keep the copy as "
                    "copy.deepcopy(network), whose parameters() are the tensors, and give that"
                )
            inner = unwrapped(copy)  # of torch's AveragedModel
            if not any(inner is known for known in self._copies):
                self._copies.append(inner)

    def newly_followed(self) -> list[nn.Module]:
        """The copies that no stage of a trainer has seen yet."""
        return self._copies[self._num_attached :]

    def check_copies(self, network: nn.Module) -> None:
        """Refuse copies that are none, before anything has changed.

        Raises:
            TargetError: If a tensor of the network is not in a copy, or has another shape there, or is the very same.
        """
        own = {id(parameter) for parameter in network.parameters()}
        for copy in self._copies:
            if any(id(parameter) in own for parameter in copy.parameters()):
                raise TargetError(
                    f"{type(copy).__name__}, given to follow, holds weights of the network itself, which need no "
                    "following; give a copy with weights of its own (copy.deepcopy), or leave it out"
                )
            held = {plain_name(name): value.shape for name, value in copy.state_dict().items()}
            for name, value in network.state_dict().items():
                if held.get(plain_name(name)) != value.shape:
                    found = list(held[plain_name(name)]) if plain_name(name) in held else "nothing"
                    raise TargetError(
                        f"{type(copy).__name__} is no copy of the network: {plain_name(name)!r} is {list(value.shape)} "
                        f"there and {found} here; give follow a copy of {type(network).__name__} itself"
                    )

    def twins(self, trainer: Trainer, network_name: str) -> Iterator[nn.Module]:
        """Every other module of the network's shape: averaged copies, and those that callbacks or the user hold."""
        for average in averaged_copies(trainer):
            yield submodule(average, network_name)
        yield from kept_copies(trainer, network_name)
        yield from self._copies

    def prefixes(self, pl_module: LightningModule, network_name: str) -> list[str]:
        """Where the network and the copies of it lie in the LightningModule: empty, or ending in a dot."""
        places = {id(module): name for name, module in named_modules(pl_module).items()}
        names = [network_name, *(places[id(copy)] for copy in self._copies if id(copy) in places)]
        return [f"{name}." if name else "" for name in names]

    @staticmethod
    def check_strategy(trainer: Trainer, *, shrinks: bool) -> None:
        """Refuse strategies under which channels cannot be coupled or removed.

        Raises:
            ShrinkError: Under sharded strategies, and for a physical shrink under ``ddp_spawn`` and its like.
        """
        Reshaper.check_whole(trainer, "channels")
        if shrinks and strategy_kind(trainer) is StrategyKind.SPAWN:
            raise ShrinkError(
                "ddp_spawn returns weights by name and shape, so nothing can shrink in it; use strategy='ddp'"
            )

    @staticmethod
    def check_whole(trainer: Trainer, what: str) -> None:
        """Refuse strategies under which a rank does not hold all of every weight.

        Args:
            trainer: The trainer of this rank.
            what: What needs it, for the message; in the plural.

        Raises:
            ShrinkError: Under sharded strategies.
        """
        if strategy_kind(trainer) is StrategyKind.SHARDED:
            raise ShrinkError(
                f"{what} cannot be used under {strategy_name(trainer)}: each rank holds a part of every weight; use ddp"
            )

    @staticmethod
    def check_optimizers(trainer: Trainer, network: nn.Module) -> None:
        """Refuse optimizers whose state could not follow a cut of a network, at the beginning of a fit.

        Raises:
            ShrinkError: Naming the optimizer, or if it is none of the trainer's that trains the network.
        """
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        owned = {id(parameter) for group in groups for parameter in group["params"]}
        trained = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
        if not trainer.lightning_module.automatic_optimization and trained and not trained & owned:
            raise ShrinkError(
                "no optimizer of the trainer trains the network: one that the training step keeps to itself would go "
                "on with the weights as they were before a cut; return it from configure_optimizers, or mask with "
                "structure.shrink='never'"
            )
        for optimizer in trainer.optimizers:
            check_optimizer(optimizer, network.parameters())

    def attach(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        state_key: str,
        network: str | None,
        cut: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Let files say what was cut, and give a module the shape and masked norms of a file, before it is loaded.

        The module's own ``on_load_checkpoint`` is the one hook between the file and its weights; by then all layers and
        averaged copies exist. There, a checkpoint cut from a model of other widths is refused by an ArtefactError.
        Its own ``on_save_checkpoint`` comes after every callback's, and for files of weights alone too.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            state_key: Name of the pruning callback.
            network: Name of the network; ``None`` finds it.
            cut: Tells what has been cut.
        """

        def on_load_checkpoint(original: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
            original(checkpoint)
            saved, norms = cuts_in(checkpoint).get(state_key), norms_in(checkpoint).get(state_key, {})
            name, _ = find_network(pl_module, network, needs_forward=False)
            for module in (submodule(pl_module, name), *self.twins(trainer, name)):
                mask_norms(module, {}, state_key)
                resize(module, saved or {})
                mask_norms(module, norms, state_key)

        def on_save_checkpoint(original: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
            original(checkpoint)
            mark_shrunk(checkpoint, state_key, cut())

        self._num_attached = len(self._copies)
        self._patches.undo()
        self._patches.wrap(pl_module, "on_save_checkpoint", on_save_checkpoint)
        self._patches.wrap(pl_module, "on_load_checkpoint", on_load_checkpoint)

    def cut(
        self, trainer: Trainer, pl_module: LightningModule, network_name: str, plan: CutPlan
    ) -> dict[str, tuple[int, ...]]:
        """Cut a live network on every rank, and adapt optimizers, averaged copies and the DDP wrapper.

        Returns:
            Shape of each tensor in ``plan`` before the cut.

        Raises:
            ShrinkError: If the state of an optimizer cannot be cut; nothing has changed then.
        """
        network = submodule(pl_module, network_name)
        network = uncompiled(network)
        sizes = {name: sizes_of(network, name) for name in plan}
        parameters = {plain_name(name): held for name, held in network.named_parameters(remove_duplicate=False)}
        for optimizer in trainer.optimizers:
            check_cut(optimizer, [parameters[name] for name in plan if name in parameters])
        replaced = apply_cut(network, plan)
        for optimizer in trainer.optimizers:
            rebind_optimizer(optimizer, replaced)
        pl_module.zero_grad(set_to_none=True)
        for twin in self.twins(trainer, network_name):
            rebind_module(twin, plan)
        if strategy_kind(trainer) is StrategyKind.DDP:
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()  # type: ignore[attr-defined]  # the reducer knows the old parameters
        return sizes

    def release(self) -> None:
        """Take every patch off."""
        self._patches.undo()


def averaged_copies(trainer: Trainer) -> Iterator[nn.Module]:
    """Every averaged copy of the LightningModule that another callback keeps (EMA, SWA)."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the trainer
        average = averaged_model(callback)
        if average is not None:
            yield average
