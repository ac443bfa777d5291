"""Elastic kernel: a convolution keeps the centre of the kernel that it was built with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.padded import PaddedForward
from lightning_optim.nas.forward.sliced import Slicing, sliced_forward
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.kernel import cropped_padding
from lightning_optim.surgery.select import Targets
from lightning_optim.surgery.torch_private import Convolution

_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticKernel(SearchDimension):
    """Elastic kernel: each target keeps the centre of its kernel (Cai et al., 2020; arXiv:1908.09791, section 3.3).

    A kernel of 7 x 7 holds one of 5 x 5 and one of 3 x 3, so that all sizes share weights, without the paper's
    transformation matrices. Padding follows, that of the layer or of the padding module before it, so that the
    output keeps its size. Use it where the receptive field is in question, on depthwise convolutions above all; it
    composes with widths of the same layer. A kernel that is not square is cropped where it is larger.

    Args:
        targets: Convolutions in one, two or three dimensions, depthwise or transposed too; those whose kernel is no
            larger than the smallest size have nothing to decide and are left alone.
        sizes: Sizes to choose from beside the layer's own, ascending, each at least 1; a target takes those that are
            smaller than its own. They differ from it by an even number, so that they have the same centre.

    Raises:
        ValueError: If the sizes do not ascend from at least 1.

    Example:
        >>> ElasticKernel(targets=Targets(), sizes=(3, 5, 7)).kernels((5, 5))
        ((3, 3), (5, 5))
    """

    adds_modules: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = True

    targets: Targets
    sizes: Sequence[int] = (3, 5, 7)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        rises = all(low < high for low, high in itertools.pairwise(self.sizes))
        if not self.sizes or not rises or self.sizes[0] < 1:
            raise ValueError(f"sizes must ascend from at least 1, got {list(self.sizes)}")

    def kernels(self, own: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Kernels that a layer may have, the last of them its own."""
        smaller = (tuple(min(size, each) for each in own) for size in self.sizes)
        return (*dict.fromkeys(kernel for kernel in smaller if kernel != own), own)

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, (Convolution,))
        layers = {name: layer for name, layer in chosen.items() if isinstance(layer, Convolution)}
        varying = {name: layer for name, layer in layers.items() if len(self.kernels(layer.kernel_size)) > 1}
        if not varying:
            largest = max(max(layer.kernel_size) for layer in layers.values())
            raise TargetError(
                f"the largest kernel of {', '.join(map(repr, layers))} is {largest}, and sizes of {list(self.sizes)} "
                "hold no smaller one: give smaller sizes, or target convolutions with larger kernels"
            )
        site.calls(list(varying))  # a weight that others read would not be cropped
        plans = {name: self._plan(name, layer, site.root) for name, layer in varying.items()}
        leaders = {id(layer.weight): name for name, layer in reversed(varying.items())}
        for name, layer in varying.items():
            plans[name].attach(f"{leaders[id(layer.weight)]}:kernel", layer)
        names = [name for name in varying if leaders[id(varying[name].weight)] == name]
        return [self._decision(name, varying[name].kernel_size) for name in names]

    def _decision(self, name: str, own: tuple[int, ...]) -> Decision:
        kernels = self.kernels(own)
        return Decision(name=f"{name}:kernel", options=tuple(map(_text, kernels)), default=len(kernels) - 1)

    def _plan(self, name: str, layer: Convolution, root: nn.Module) -> _Plan:
        kernels = self.kernels(layer.kernel_size)
        if "weight" not in vars(layer)["_parameters"]:
            raise TargetError(
                f"the weight of {name!r} is computed by a parametrization and has no kernel to crop; add it to "
                "targets.exclude, or remove the parametrization"
            )
        for kernel in kernels:
            if any((own - size) % 2 for own, size in zip(layer.kernel_size, kernel, strict=True)):
                raise TargetError(
                    f"a kernel of {_text(kernel)} has not the centre of {name!r}, whose kernel is "
                    f"{_text(layer.kernel_size)}: give sizes that differ from it by an even number, or add it to "
                    "targets.exclude"
                )
        paddings = [cropped_padding(layer, kernel) for kernel in kernels]
        if all(min(padding) >= 0 for padding in paddings):
            return _Plan(kernels)
        pad = None if any(paddings[-1]) else _pad_before(layer, root)
        follows = [_reversed_pairs(padding, pad) for padding in paddings] if pad is not None else []
        if pad is None or any(min(sides) < 0 for sides in follows):
            raise TargetError(
                f"{name!r} pads its input by {list(paddings[-1])}, which is too little for a kernel of "
                f"{_text(kernels[0])} to return as many positions as one of {_text(layer.kernel_size)}; add it to "
                "targets.exclude, or build it with padding"
            )
        return _Plan(kernels, pad, tuple(follows))


@final
@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows the kernel of one layer."""

    kernels: tuple[tuple[int, ...], ...]
    pad: nn.Module | None = None
    paddings: tuple[tuple[int, ...], ...] = ()

    def attach(self, decision: str, layer: Convolution) -> None:
        for dim, own in enumerate(layer.kernel_size):
            counts = tuple(kernel[dim] for kernel in self.kernels)
            if counts[0] < own:
                slicing = Slicing(
                    decision=decision, tensor="weight", dim=2 + dim, index=_from_centre(own), counts=counts
                )
                sliced_forward(layer).add(slicing)
        if self.pad is not None:
            PaddedForward(self.pad, decision, self.paddings).attach()


def _from_centre(size: int) -> Tensor:
    positions = sorted(range(size), key=lambda position: abs(2 * position - size + 1))
    return torch.tensor(positions).view(size, 1)


def _pad_before(layer: nn.Module, root: nn.Module) -> nn.Module | None:
    """The padding module that a layer holds, or that stands right before it in a sequence."""
    own = [child for child in layer.children() if isinstance(child, _PADS)]
    for parent in root.modules():
        children = list(parent.children()) if isinstance(parent, nn.Sequential) else []
        own += [before for before, child in itertools.pairwise(children)
                if child is layer and isinstance(before, _PADS)]  # fmt: skip
    return own[0] if len(own) == 1 else None


def _reversed_pairs(lost: Sequence[int], pad: nn.Module) -> tuple[int, ...]:
    """Padding on both sides of each dimension, the last dimension first, less what a crop does without."""
    sides: Mapping[int, int] = dict(enumerate(vars(pad)["padding"]))
    return tuple(side + lost[len(lost) - 1 - place // 2] for place, side in sides.items())


def _text(kernel: Sequence[int]) -> str:
    return str(kernel[0]) if len(set(kernel)) == 1 else "x".join(map(str, kernel))
