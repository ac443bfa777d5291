import gzip

import numpy as np
import pytest
import torch

from lightning_optim.demo.data.idx import find_idx, read_idx
from lightning_optim.errors import ArtefactError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
FILE = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in PIXELS.shape) + PIXELS.tobytes()


def test_plain_and_gzipped_files_read_alike(tmp_path):
    (tmp_path / "plain").write_bytes(FILE)
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(FILE))
    for name in ("plain", "zipped"):
        assert torch.equal(read_idx(find_idx(tmp_path, name)), torch.from_numpy(PIXELS))


@pytest.mark.parametrize("size", [0, 3, 9, len(FILE) - 1])
def test_a_truncated_file_says_so_in_one_line(tmp_path, size):
    (tmp_path / "cut").write_bytes(FILE[:size])
    with pytest.raises(ArtefactError, match=r"cut (is no IDX|holds)") as caught:
        read_idx(tmp_path / "cut")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(FILE)[:-20], b"not a gzip file", gzip.compress(FILE)[:30] + b"\0" * 60],
    ids=["cut", "plain", "zeros"],
)
def test_a_damaged_gzip_file_says_so_in_one_line(tmp_path, content):
    (tmp_path / "bad.gz").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"bad\.gz cannot be read") as caught:
        read_idx(tmp_path / "bad.gz")
    assert "\n" not in str(caught.value)


def test_other_element_types_are_refused(tmp_path):
    (tmp_path / "floats").write_bytes(bytes([0, 0, 13]) + FILE[3:])
    with pytest.raises(ArtefactError, match="00 00 0d 03"):
        read_idx(tmp_path / "floats")
