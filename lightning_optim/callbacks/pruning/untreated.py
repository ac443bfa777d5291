"""Layers whose kind pruning does not treat."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_optim.surgery.layer_kinds import has_output_rows
from lightning_optim.surgery.parametrized import own_parameters
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.torch_private import NormBase, TransposedConvolution

_WITHOUT_MATRIX = (nn.Embedding, nn.EmbeddingBag, NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
"""Kinds whose weights are tables or factors, which no one expects to be pruned."""


def untreated_layers(network: nn.Module, *, couples: bool = False) -> dict[str, nn.Module]:
    """Return the trained layers with a matrix of weights whose kind is not treated, by plain name.

    Args:
        network: The network.
        couples: Whether whole channels go, and with them what PyTorch's own attention makes of them.

    Example:
        >>> untreated_layers(nn.ModuleDict({"memory": nn.GRU(1, 2), "fc": nn.Linear(2, 2)}))
        {'memory': GRU(1, 2)}
    """
    treated = (*_WITHOUT_MATRIX, *((nn.MultiheadAttention,) if couples else ()))
    return {
        name: module
        for name, module in named_modules(network).items()
        if not (isinstance(module, treated) or has_output_rows(module))
        and any(parameter.dim() > 1 and parameter.requires_grad for parameter in own_parameters(module))
    }


def name_untreated(layers: Mapping[str, nn.Module], network: str) -> None:
    """Say once which layers are left alone, one by one.

    Args:
        layers: The layers, by plain name in the network.
        network: The network's plain name in the LightningModule.
    """
    grouped = {name: layer for name, layer in layers.items() if isinstance(layer, TransposedConvolution)}
    others = {name: layer for name, layer in layers.items() if name not in grouped}
    if others:
        rank_zero_warn(
            f"pruning leaves alone what is neither a convolution nor a linear layer: {_listed(others, network)}"
        )
    if grouped:
        rank_zero_warn(
            "pruning leaves alone transposed convolutions in groups, whose weights have no slice for each output "
            f"channel: {_listed(grouped, network)}"
        )


def _listed(layers: Mapping[str, nn.Module], network: str) -> str:
    prefix = f"{network}." if network else ""
    return ", ".join(f"{prefix}{name} ({type(layer).__name__})" for name, layer in layers.items())
