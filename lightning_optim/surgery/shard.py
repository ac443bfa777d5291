"""Shards: the part of a tensor that this rank holds."""

from __future__ import annotations

from torch import Tensor, distributed, nn


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a distributed tensor, sharing its storage; any other tensor as it is."""
    if is_sharded(tensor):
        return tensor.to_local()  # type: ignore[attr-defined, no-any-return]  # a DTensor
    return tensor


def reshard(root: nn.Module) -> None:
    """Put every parameter of ``root`` back into its sharded form; does nothing to a module that is not sharded.

    FSDP2 leaves the outermost parameters whole after a forward pass without a backward pass, as in validation.
    """
    if not distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_group(tensors: list[Tensor]) -> distributed.ProcessGroup | None:
    """Process group over which ``tensors`` are sharded; ``None`` if each rank holds all of them.

    Raises:
        ValueError: If the tensors are not all laid out alike.
    """
    # By name: meshes sliced twice from one mesh are two objects over one group.
    groups = {None if group is None else group.group_name: group for group in map(_group_of, tensors)}
    if len(groups) > 1:
        raise ValueError(
            "some parameters are sharded over ranks and some are not; shard all of the network, or none of it"
        )
    return next(iter(groups.values()), None)


def part_of_rank(values: Tensor, like: Tensor) -> Tensor:
    """The entries of ``values``, one for each row of ``like``, whose rows are on this rank; all if none is sharded."""
    if not is_sharded(like):
        return values
    mesh = like.device_mesh  # type: ignore[attr-defined]  # a DTensor
    parts = values.chunk(mesh.size())
    return parts[mesh.get_local_rank()] if mesh.get_local_rank() < len(parts) else values[:0]


def _group_of(tensor: Tensor) -> distributed.ProcessGroup | None:
    if not is_sharded(tensor):
        return None
    mesh = tensor.device_mesh  # type: ignore[attr-defined]  # a DTensor
    if mesh.ndim != 1:
        raise ValueError(f"parameters sharded over a {mesh.ndim}-dimensional mesh are not supported; use one dimension")
    return mesh.get_group()  # type: ignore[no-any-return]


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of ``tensor``."""
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_sum(tensor: Tensor) -> float:
    """Sum of all entries; of a sharded tensor over all ranks, each of which must ask.

    Example:
        >>> import torch
        >>> whole_sum(torch.tensor([1.0, 2.0]))
        3.0
    """
    total = tensor.sum()
    return float(total.full_tensor() if is_sharded(total) else total)  # type: ignore[attr-defined]  # a DTensor
