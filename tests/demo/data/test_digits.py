import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from lightning_optim.demo import Digits
from lightning_optim.errors import ArtefactError


def test_the_last_450_rows_are_the_test_set_and_147_of_the_rest_validate():
    train, validation, test = Digits().splits
    assert [len(split) for split in (train, validation, test)] == [1200, 147, 450]
    assert test.labels.tolist() == load_digits().target[-450:].tolist()
    every = torch.cat([train.images, validation.images, test.images]).flatten(1)
    assert len(every.unique(dim=0)) == len(torch.tensor(load_digits().data).unique(dim=0))


def test_images_are_the_originals_upscaled():
    original = torch.tensor(load_digits().images[-1], dtype=torch.float32)[None, None] / 16
    expected = F.interpolate(original, size=16, mode="bilinear", align_corners=False)
    assert torch.equal(Digits().splits[2].images[-1:], expected)
    assert torch.equal(Digits(resolution=8).splits[2].images[-1:], original)


def test_the_split_does_not_follow_the_training_seed():
    assert torch.equal(Digits(seed=0).splits[1].labels, Digits(seed=1).splits[1].labels)
    assert not torch.equal(Digits().splits[1].images, Digits(split_seed=1).splits[1].images)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ArtefactError, match=r"pip install 'lightning-optim\[demo\]'"):
        Digits().setup("fit")


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="resolution must be at least 8"):
        Digits(resolution=7)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Digits(batch_size=0)
