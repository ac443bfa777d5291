"""Which modules are dropout, and what rates they get."""

import pytest
from torch import nn

from lightning_optim.regularization import PresentDropout
from lightning_optim.regularization.dropout.present_dropout import rate_attribute


class DropPath(nn.Module):  # as timm has it
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob


class SwinDropPath(DropPath): ...  # as transformers has it


class StochasticDepth(nn.Module):  # as torchvision has it
    def __init__(self, p, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode


class DropBlock2d(DropPath): ...  # timm's holds its rate so too


class Dropped(nn.Module):
    p = 0.1


def test_rates_are_found_in_torchs_modules_and_by_the_usual_names():
    for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout):
        assert rate_attribute(kind(0.2)) == "p"
    assert rate_attribute(StochasticDepth(0.2)) == "p"
    assert [rate_attribute(each) for each in (DropPath(0.1), SwinDropPath(0), DropBlock2d(0.2))] == ["drop_prob"] * 3
    assert [rate_attribute(each) for each in (Dropped(), DropPath(None), nn.Linear(1, 1))] == [None] * 3


def test_rates_are_set_or_scaled():
    assert PresentDropout().rates(0.3, [0.1, 0.5]) == [0.3, 0.3]
    assert PresentDropout(mode="scale").rates(0.5, [0.1, 0.5]) == pytest.approx([0.05, 0.25])
