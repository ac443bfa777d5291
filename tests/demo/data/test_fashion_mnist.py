import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_optim.demo import FashionMNIST
from lightning_optim.demo.data import fashion_mnist
from lightning_optim.errors import ArtefactError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.astype(np.uint8).tobytes()


def write_set(folder, num_train=40, num_test=20):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, size in (("train", num_train), ("t10k", num_test)):
        images = rng.integers(0, 256, (size, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(size) % 10))
    return folder


def test_a_folder_of_idx_files_is_split_in_three(tmp_path):
    data = FashionMNIST(folder=str(write_set(tmp_path)), num_validation=10, batch_size=15)
    train, validation, test = data.splits
    assert [len(split) for split in (train, validation, test)] == [30, 10, 20]
    assert sorted(validation.labels.tolist()) == list(range(10))
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.dtype) == ((15, 1, 28, 28), torch.float32, torch.int64)
    assert 0.0 <= images.min() < images.max() <= 1.0


def test_a_missing_folder_says_what_to_do_in_one_line(tmp_path):
    with pytest.raises(ArtefactError, match=r"no train-images.* install Debian's dataset-fashion-mnist") as caught:
        FashionMNIST(folder=str(tmp_path / "none")).setup("fit")
    assert "\n" not in str(caught.value)


def test_images_without_a_label_each_are_refused(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39)))
    with pytest.raises(ArtefactError, match="one label per image"):
        FashionMNIST(folder=str(tmp_path)).setup("fit")


def test_nothing_is_fetched_unasked(tmp_path):
    FashionMNIST(folder=str(tmp_path)).prepare_data()
    assert not list(tmp_path.iterdir())


def test_a_download_is_checked_before_it_is_kept(tmp_path):
    mirror, kept, name = tmp_path / "mirror", tmp_path / "kept", "t10k-labels-idx1-ubyte"
    mirror.mkdir()
    (mirror / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ArtefactError, match="is not the file it should be"):
        fashion_mnist._fetch(name, kept, mirror.as_uri())
    with pytest.raises(ArtefactError, match="cannot be fetched"):
        fashion_mnist._fetch("train-labels-idx1-ubyte", kept, mirror.as_uri())
    assert not kept.exists()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_checksums_are_those_of_the_real_files(tmp_path):
    for name, checksum in fashion_mnist._CHECKSUMS.items():
        data = gzip.decompress((DEBIAN / f"{name}.gz").read_bytes())
        assert hashlib.sha256(data).hexdigest() == checksum
    kept = fashion_mnist._fetch("t10k-labels-idx1-ubyte", tmp_path, DEBIAN.as_uri())
    assert kept.read_bytes() == (DEBIAN / "t10k-labels-idx1-ubyte.gz").read_bytes()
