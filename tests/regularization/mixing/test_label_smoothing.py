"""Label smoothing against its formula, and against the loss of torch that does the same."""

import pytest
import torch
from torch.nn import functional as F

from lightning_optim.regularization import LabelSmoothing


def test_labels_are_those_of_the_formula():
    labels = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    smooth = LabelSmoothing(smoothing=0.3).soften(labels)
    for row in range(2):
        for column in range(3):
            expected = 0.7 * float(labels[row, column]) + 0.3 / 3
            assert float(smooth[row, column]) == pytest.approx(expected)


def test_the_loss_is_that_of_torch():
    logits, classes = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12).view(4, 3) % 5
    smooth = LabelSmoothing(smoothing=0.1).soften(F.one_hot(classes, 5).movedim(-1, 1).float())
    torch.testing.assert_close(F.cross_entropy(logits, smooth), F.cross_entropy(logits, classes, label_smoothing=0.1))


def test_shares_out_of_range_are_refused():
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="smoothing must be above 0 and at most 1"):
            LabelSmoothing(smoothing=share)
