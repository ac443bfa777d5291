"""Layers whose kind pruning does not treat."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_optim.callbacks.pruning.evidence import LAYERS
from lightning_optim.surgery.parametrized import own_parameters
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.torch_private import NormBase

_WITHOUT_MATRIX = (nn.Embedding, nn.EmbeddingBag, NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
"""Kinds whose weights are tables or factors, which no one expects to be pruned."""


def untreated_layers(network: nn.Module, *, couples: bool = False) -> dict[str, nn.Module]:
    """Return the trained layers with a matrix of weights whose kind is not treated, by plain name.

    Args:
        network: The network.
        couples: Whether whole channels go, and with them what PyTorch's own attention makes of them.

    Example:
        >>> untreated_layers(nn.ModuleDict({"up": nn.ConvTranspose2d(1, 2, 3), "fc": nn.Linear(2, 2)}))
        {'up': ConvTranspose2d(1, 2, kernel_size=(3, 3), stride=(1, 1))}
    """
    treated = (*LAYERS, *_WITHOUT_MATRIX, *((nn.MultiheadAttention,) if couples else ()))
    return {
        name: module
        for name, module in named_modules(network).items()
        if not isinstance(module, treated)
        and any(parameter.dim() > 1 and parameter.requires_grad for parameter in own_parameters(module))
    }


def name_untreated(layers: Mapping[str, nn.Module], network: str) -> None:
    """Say once which layers are left alone, one by one.

    Args:
        layers: The layers, by plain name in the network.
        network: The network's plain name in the LightningModule.
    """
    if layers:
        prefix = f"{network}." if network else ""
        names = ", ".join(f"{prefix}{name} ({type(layer).__name__})" for name, layer in layers.items())
        rank_zero_warn(f"pruning leaves alone what is neither a convolution nor a linear layer: {names}")
