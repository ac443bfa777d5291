"""Fashion-MNIST: 70 000 images of clothes, 28 x 28 pixels, in ten classes (Xiao et al., 2017; arXiv:1708.07747)."""

from __future__ import annotations

import gzip
import hashlib
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.atomic import write_atomic
from lightning_optim.demo.data.base import ImageData
from lightning_optim.demo.data.functional import stratified_indices
from lightning_optim.demo.data.idx import find_idx, read_idx
from lightning_optim.demo.data.tensors import Augmentation, Split
from lightning_optim.errors import ArtefactError

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# SHA-256 of the unzipped files: the same however a mirror compresses them.
_CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@final
class FashionMNIST(ImageData):
    """Fashion-MNIST, or any set of the same four IDX files.

    Args:
        folder: Where the files lie, gzipped or not; ``None`` looks where Debian's ``dataset-fashion-mnist`` puts
            them, then in the user's cache.
        download: Whether to fetch what is missing from the public mirror, and check it.
        batch_size: Samples of a training batch, per rank.
        seed: Order and augmentation of the training batches.
        num_validation: Training samples held out for validation, every class in proportion.
        split_seed: Which samples those are.
        augmentation: What happens to training images; shifts by a pixel and mirrors by default.
    """

    def __init__(
        self,
        *,
        folder: str | None = None,
        download: bool = False,
        batch_size: int = 128,
        seed: int = 0,
        num_validation: int = 5000,
        split_seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        usual = Augmentation(max_shift=1, mirror=0.5)
        super().__init__(batch_size=batch_size, seed=seed, augmentation=augmentation or usual)
        self.folder = Path(folder).expanduser() if folder is not None else _default_folder()
        self.download, self.num_validation, self.split_seed = download, num_validation, split_seed

    @override
    def prepare_data(self) -> None:
        for name in _CHECKSUMS if self.download else ():
            if find_idx(self.folder, name) is None:
                _fetch(name, self.folder)

    @override
    def read(self) -> tuple[Split, Split, Split]:
        everything, test = self._pair("train"), self._pair("t10k")
        train, validation = stratified_indices(everything.labels, self.num_validation, self.split_seed)
        return everything.take(train), everything.take(validation), test

    def _pair(self, part: str) -> Split:
        images, labels = self._read(f"{part}-images-idx3-ubyte"), self._read(f"{part}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ArtefactError(
                f"{self.folder} holds {part} images of shape {tuple(images.shape)} and labels of shape "
                f"{tuple(labels.shape)}; one label per image is needed"
            )
        return Split(images=images[:, None], labels=labels.long())

    def _read(self, name: str) -> Tensor:
        path = find_idx(self.folder, name)
        if path is None:
            raise ArtefactError(
                f"no {name}[.gz] in {self.folder}: install Debian's dataset-fashion-mnist, give data.folder, "
                "or set data.download=true"
            )
        return read_idx(path)


def _default_folder() -> Path:
    return _DEBIAN if _DEBIAN.is_dir() else Path("~/.cache/lightning-optim/fashion-mnist").expanduser()


def _fetch(name: str, folder: Path, mirror: str = _MIRROR) -> Path:
    url = f"{mirror}/{name}.gz"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # a fixed http mirror, checked below
            data: bytes = answer.read()
        digest = hashlib.sha256(gzip.decompress(data)).hexdigest()
    except (urllib.error.URLError, OSError, EOFError, zlib.error) as error:
        raise ArtefactError(f"{url} cannot be fetched ({error}): is there a network? Or give data.folder") from error
    if digest != _CHECKSUMS[name]:
        raise ArtefactError(f"{url} is not the file it should be: SHA-256 {digest}, needed {_CHECKSUMS[name]}")
    return write_atomic(folder / f"{name}.gz", data)
