"""Classes of Lightning, found by name in ``lightning.pytorch`` and in ``pytorch_lightning`` alike."""

from __future__ import annotations


def is_instance_of(value: object, *names: str) -> bool:
    """Whether the class of a value, or one that it derives from, has one of the names.

    Lightning comes in two packages whose classes do not know each other, so ``isinstance`` would miss one of them.

    Example:
        >>> class DDPStrategy: ...
        >>> class OwnStrategy(DDPStrategy): ...
        >>> is_instance_of(OwnStrategy(), "DDPStrategy")
        True
    """
    return any(base.__name__ in names for base in type(value).__mro__)
