"""Elastic resolution: the network runs on its images at one of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.resized import ResizedForward
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.resized_input import image_size
from lightning_optim.surgery.select import submodule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticResolution(SearchDimension):
    """Elastic resolution: images are resized before the network (Cai et al., 2020; arXiv:1908.09791, section 3.2).

    MACs fall with the square of the size and weights do not change: the first thing to try for a convolutional
    network on a small device. The images are the first floating-point tensor of samples, channels and one to three
    dimensions; interpolation is linear. Labels stay as they are, so that a network whose output has the size of its
    input is refused. In the extracted network a hook of this package resizes; at the own size there is none.

    Args:
        sizes: Sizes to choose from beside leaving the input as it is, each at least 1: a number for all dimensions of
            an image, or one for each.

    Raises:
        ValueError: If there is no size, or one below 1.

    Example:
        >>> ElasticResolution(sizes=[96, [64, 128]]).of_dimensions(2)
        ((96, 96), (64, 128))
    """

    adds_modules: ClassVar[bool] = False

    sizes: Sequence[int | Sequence[int]]

    def __post_init__(self) -> None:
        sizes = tuple(size if isinstance(size, int) else tuple(size) for size in self.sizes)
        object.__setattr__(self, "sizes", sizes)
        if not sizes or any(each < 1 for size in sizes for each in ([size] if isinstance(size, int) else size or [0])):
            raise ValueError(f"sizes must be at least 1, and at least one, got {list(self.sizes)}")

    def of_dimensions(self, number: int) -> tuple[tuple[int, ...], ...]:
        """The sizes of images of so many dimensions.

        Raises:
            ValueError: If a size is of images of another number.
        """
        sizes = tuple((size,) * number if isinstance(size, int) else tuple(size) for size in self.sizes)
        wrong = [size for size in sizes if len(size) != number]
        if wrong:
            raise ValueError(f"images of {number} dimensions need as many numbers a size, or one, got {list(wrong[0])}")
        return tuple(dict.fromkeys(sizes))

    @override
    def attach(self, site: Site) -> list[Decision]:
        own = image_size(site.args, site.kwargs)
        if own is None:
            raise TargetError(
                f"no images go into the network {site.network!r}: a resolution needs a floating-point tensor of "
                "samples, channels and one to three dimensions; leave this entry out of the space"
            )
        sizes = [size for size in self.of_dimensions(len(own)) if size != own]
        if not sizes:
            raise TargetError(f"the example's images are of size {list(own)} already; give other sizes")
        name = f"{site.network or 'input'}:resolution"
        ResizedForward(submodule(site.root, site.network), name, sizes).attach()
        return [Decision(name=name, options=(*map(_text, sizes), f"own ({_text(own)})"), default=len(sizes))]


def _text(size: Sequence[int]) -> str:
    return str(size[0]) if len(set(size)) == 1 else "x".join(map(str, size))
