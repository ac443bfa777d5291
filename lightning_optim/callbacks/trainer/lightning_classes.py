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


def derives_from_lightning(value: object, name: str) -> bool:
    """Whether the class of a value is the one of that name of either package of Lightning, or derives from it.

    A class of the user's own may have the name and nothing else of it.

    Example:
        >>> class EarlyStopping: ...
        >>> derives_from_lightning(EarlyStopping(), "EarlyStopping")
        False
    """
    packages = ("lightning.", "pytorch_lightning.")
    return any(base.__name__ == name and base.__module__.startswith(packages) for base in type(value).__mro__)
