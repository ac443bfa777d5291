"""2:4 sparse weights, packed for sparse matrix units."""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from lightning_optim.errors import TargetError, reason_of
from lightning_optim.surgery.select import named_modules

_KEEP, _OUT_OF = 2, 4


def is_semi_structured(weight: Tensor, keep: int = _KEEP, out_of: int = _OUT_OF) -> bool:
    """Whether of every ``out_of`` consecutive input channels at most ``keep`` have a weight.

    Args:
        weight: ``[O, I, ...]``.
        keep: Weights that a group may have.
        out_of: Length of a group.

    Example:
        >>> import torch
        >>> is_semi_structured(torch.tensor([[1.0, 0.0, 0.0, 2.0]])), is_semi_structured(torch.ones(1, 4))
        (True, False)
    """
    if weight.dim() < 2 or weight.shape[1] % out_of:
        return False
    groups = weight.detach().movedim(1, -1).reshape(-1, out_of)
    return bool((groups.count_nonzero(-1) <= keep).all())


def pack_semi_structured(model: nn.Module) -> list[str]:
    """Compress the weight of every linear layer that is 2:4 sparse, for inference on a CUDA device.

    Half of the numbers are stored, and matrix units skip the zeros. Types and sizes are those of
    ``torch.sparse.to_sparse_semi_structured``; a layer that it refuses stays as it is, with a warning.

    Args:
        model: A trained model, on its device and in its type; changed in place. It no longer trains.

    Returns:
        Names of the layers that were packed.

    Raises:
        TargetError: If no linear layer is 2:4 sparse.
        ValueError: If such a layer is not on a CUDA device.
    """
    layers = {
        name: module
        for name, module in named_modules(model).items()
        if isinstance(module, nn.Linear) and is_semi_structured(module.weight)
    }
    _check(layers)
    packed: dict[str, nn.Parameter] = {}
    for name, layer in layers.items():
        try:
            sparse = to_sparse_semi_structured(layer.weight.detach())
        except RuntimeError as error:
            warnings.warn(f"{name} stays dense: {reason_of(error)}", stacklevel=2)
        else:
            packed[name] = nn.Parameter(sparse, requires_grad=False)
    for name, weight in packed.items():
        layers[name].weight = weight
    return list(packed)


def _check(layers: dict[str, nn.Linear]) -> None:
    if not layers:
        raise TargetError(
            f"no linear layer is {_KEEP}:{_OUT_OF} sparse: prune with structure 'SemiStructured' to a sparsity of "
            f"{_KEEP / _OUT_OF:g} first"
        )
    for name, layer in layers.items():
        if not layer.weight.is_cuda:
            raise ValueError(
                f"{_KEEP}:{_OUT_OF} sparse kernels need a CUDA device, but {name}.weight is on {layer.weight.device}: "
                "move the model there first; elsewhere a dense model with zeros is as fast"
            )
