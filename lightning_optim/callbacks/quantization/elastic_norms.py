"""Refusal of supernets in which batch norms have several widths."""

from __future__ import annotations

from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.sliced import SlicedForward
from lightning_optim.nas.forward.switchable import switchable_forwards
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.torch_private import BatchNorm


def refuse_elastic_norms(network: nn.Module) -> None:
    """Refuse a network that runs batch norms at several widths, since each is folded into a layer as a whole.

    Args:
        network: The network, a supernet or not.

    Raises:
        TargetError: Naming the norm.
    """
    elastic = {id(each.owner) for each in switchable_forwards(network) if isinstance(each, SlicedForward)}
    for name, module in named_modules(network).items():
        if id(module) in elastic and isinstance(module, BatchNorm):
            raise TargetError(
                f"QATFakeQuant folds whole batch norms into the layers before them, and NASSupernet runs {name!r} at "
                "several widths: search first, and train what NASSupernet.extract returns under QATFakeQuant"
            )
