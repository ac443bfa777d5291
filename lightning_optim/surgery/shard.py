"""The part of a tensor that lives on this rank."""

from __future__ import annotations

from torch import Tensor, distributed


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a distributed tensor, sharing its storage; any other tensor as it is."""
    if _is_sharded(tensor):
        return tensor.to_local()  # type: ignore[attr-defined, no-any-return]  # a DTensor
    return tensor


def shard_group(tensors: list[Tensor]) -> distributed.ProcessGroup | None:
    """The process group over which ``tensors`` are sharded; ``None`` if each rank holds all of them.

    Raises:
        ValueError: If the tensors are not all laid out alike.
    """
    meshes = {tensor.device_mesh if _is_sharded(tensor) else None for tensor in tensors}  # type: ignore[attr-defined]
    if len(meshes) != 1:
        raise ValueError(
            "some parameters are sharded over ranks and some are not; shard all of the network, or none of it"
        )
    mesh = meshes.pop()
    if mesh is None:
        return None
    if mesh.ndim != 1:
        raise ValueError(f"parameters sharded over a {mesh.ndim}-dimensional mesh are not supported; use one dimension")
    return mesh.get_group()  # type: ignore[no-any-return]


def _is_sharded(tensor: Tensor) -> bool:
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
