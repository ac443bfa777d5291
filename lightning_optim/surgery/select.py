"""Selection of modules by names, globs and types."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.swa_utils import AveragedModel

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.surgery.torch_private import COMPILED_CHILD, uncompiled


def plain_name(name: str) -> str:
    """Drop the prefix that ``torch.compile`` puts into module names.

    Example:
        >>> plain_name("net._orig_mod.conv1")
        'net.conv1'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED_CHILD)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what a wrapper of data parallelism or averaging holds as its child ``module``; else the module itself.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> unwrapped(AveragedModel(layer)).weight.shape, unwrapped(layer) is layer
        (torch.Size([1, 2]), True)
    """
    while isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
        module = module.module
    return module


def named_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Every module below ``root`` by its plain name; a shared module stands under its first name."""
    return {plain_name(name): module for name, module in unwrapped(root).named_modules() if name}


def submodule(root: nn.Module, name: str) -> nn.Module:
    """Return the module of that plain name; the empty name is ``root``.

    Raises:
        TargetError: If there is none, naming the nearest ones.
    """
    root = unwrapped(root)
    if not name:
        return root
    modules = root.named_modules(remove_duplicate=False)
    found: dict[str, nn.Module] = {plain_name(key): module for key, module in modules if key}
    if name not in found:
        raise TargetError(f"no module is named {name!r}; {_nearest(name, list(found))}")
    return found[name]


def find_network(root: nn.Module, name: str | None, *, needs_forward: bool = True) -> tuple[str, nn.Module]:
    """Find the network that a LightningModule trains.

    Args:
        root: The LightningModule.
        name: Plain name of the network, ``""`` for ``root`` itself. ``None`` is the only child that has parameters if
            it is a network, neither a mere container nor a single layer of torch, else ``root``.
        needs_forward: Whether ``root`` is only taken if it has a ``forward`` of its own; without one, a training step
            can only call its parts.

    Returns:
        The network's plain name and the module.

    Raises:
        TargetError: If the name matches nothing, or no name was given and there is no network.
    """
    if name is not None:
        return name, submodule(root, name)
    children = {plain_name(key): child for key, child in root.named_children() if any(True for _ in child.parameters())}
    inner = [uncompiled(child) for child in children.values()]
    own = any(True for _ in root.parameters(recurse=False))
    if len(children) == 1 and not own and not any(map(_is_container_or_layer, inner)):
        return next(iter(children.items()))
    if not needs_forward or _has_forward(root):
        return "", root
    raise TargetError(
        f"which module is the network? {type(root).__name__} has {sorted(children) or 'no children with parameters'}; "
        "set network to one of these names, or to '' for the module itself"
    )


def _has_forward(root: nn.Module) -> bool:
    forward = type(root).forward
    return forward is not nn.Module.forward and forward.__qualname__ != "LightningModule.forward"


def _is_container_or_layer(child: nn.Module) -> bool:
    """Whether a module is never called, as ``nn.ModuleList``, or is one layer of torch's, whose name would be empty."""
    is_layer = type(child).__module__.startswith("torch.nn.") and not any(True for _ in child.children())
    forward = inspect.getattr_static(type(child), "forward")  # a scripted module's can be read of an instance alone
    return forward is nn.Module.forward or is_layer


def check_initialized(network: nn.Module, name: str) -> None:
    """Refuse a network some of whose weights get their shapes in the first forward pass alone.

    Args:
        network: The network.
        name: Where it is, for the message.

    Raises:
        TargetError: Naming the first such layer.

    Example:
        >>> check_initialized(nn.LazyLinear(2), "net.0")
        Traceback (most recent call last):
        lightning_optim.errors.TargetError: 'net.0' (LazyLinear) has no weights yet: run the module once on a batch ...
    """
    for inner, module in {"": network, **named_modules(network)}.items():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in own):
            raise TargetError(
                f"{f'{name}.{inner}'.strip('.')!r} ({type(module).__name__}) has no weights yet: run the module once "
                "on a batch before the fit"
            )


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets: a choice of modules by name and by type.

    Args:
        include: Globs over module names, such as ``"net.layers.*"``; a module matches one of them.
        exclude: Globs of modules to leave out; the subtree below a match is left out too.
        types: Class names, such as ``"Conv2d"``; empty takes what the technique can treat.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3))
        >>> list(Targets(exclude=("0",)).select(net, (nn.Conv2d,)))
        ['2']
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    types: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in ("include", "exclude", "types"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.include:
            raise ValueError("targets.include must name at least one glob, got none")

    def select(self, root: nn.Module, treatable: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
        """Return the chosen modules of a treatable type, by plain name, in the model's order.

        Args:
            root: Where to look.
            treatable: Types that the technique can treat.

        Raises:
            TargetError: If a glob or type matches nothing, or nothing treatable is left.
        """
        modules = named_modules(root)
        self._check(modules, treatable)
        chosen = {
            name: module
            for name, module in modules.items()
            if isinstance(module, treatable)
            and any(fnmatchcase(name, glob) for glob in self.include)
            and not any(_covers(glob, name) for glob in self.exclude)
            and (not self.types or type(module).__name__ in self.types)
        }
        if not chosen:
            raise TargetError(f"targets {self._text()} leave no {_names(treatable)} in {type(root).__name__}")
        return chosen

    def _check(self, modules: dict[str, nn.Module], treatable: tuple[type[nn.Module], ...]) -> None:
        for glob in self.include:
            matches = [module for name, module in modules.items() if fnmatchcase(name, glob)]
            if not matches:
                raise TargetError(f"target {glob!r} matches no module; {_nearest(glob, list(modules))}")
            if not any(isinstance(module, treatable) for module in matches):
                raise TargetError(f"target {glob!r} matches {len(matches)} modules, none of them a {_names(treatable)}")
        for glob in self.exclude:
            if not any(_covers(glob, name) for name in modules):
                raise TargetError(f"targets.exclude {glob!r} matches no module; {_nearest(glob, list(modules))}")
        present = {type(module).__name__ for module in modules.values() if isinstance(module, treatable)}
        for kind in self.types:
            if kind not in present:
                raise TargetError(f"targets.types {kind!r} is no treatable layer here; there are {sorted(present)}")

    def _text(self) -> str:
        return f"include={list(self.include)}, exclude={list(self.exclude)}, types={list(self.types)}"


def _covers(glob: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), glob) for end in range(len(parts)))


def _names(types: tuple[type[nn.Module], ...]) -> str:
    return " or ".join(sorted({kind.__name__.lstrip("_") for kind in types}))


def _nearest(name: str, options: list[str]) -> str:
    near = difflib.get_close_matches(name.strip("*."), options, n=3, cutoff=0.3) or options[:5]
    return f"did you mean {', '.join(map(repr, near))}?" if near else "the model has no named modules"
