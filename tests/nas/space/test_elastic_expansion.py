import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.nas import ElasticExpansion, ElasticKernel, ElasticWidth
from nas_laws import check_paths, converted


class Bottleneck(nn.Module):
    """An inverted bottleneck with squeeze and excitation."""

    def __init__(self, width=4, ratio=6):
        super().__init__()
        hidden = width * ratio
        self.expand, self.norm = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 3, 1), nn.Conv2d(3, hidden, 1)
        self.project = nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        hidden = self.depthwise(F.relu6(self.norm(self.expand(x))))
        scale = self.excite(F.relu(self.squeeze(hidden.mean((2, 3), keepdim=True))))
        return x + self.project(hidden * scale.sigmoid())


class Gated(nn.Module):
    """A gated MLP."""

    def __init__(self, width=4, hidden=12):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.mlp, self.head = nn.Conv2d(1, 4, 3), Bottleneck(), Gated(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.mlp(self.block(self.stem(x)).mean((2, 3))))


IMAGES = (torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)),)


def expansion(*include, **settings):
    return ElasticExpansion(targets=Targets(include=include), **settings)


def test_a_hidden_layer_takes_what_is_coupled_to_it_along():
    torch.manual_seed(0)
    supernet = converted(
        Net(), IMAGES, expansion=expansion("block", "mlp", ratios=(1, 2, 4)),
        kernel=ElasticKernel(targets=Targets(include=("block.depthwise",))),
        width=ElasticWidth(targets=Targets(include=("stem",)), fractions=(0.5, 1.0)),
    )  # fmt: skip
    assert {entry.name: entry.options for entry in supernet.decisions} == {
        "block.expand:expansion": ("4", "8", "16", "24"), "mlp.gate:expansion": ("4", "8", "12"),
        "block.depthwise:kernel": ("3", "5"), "stem:width": ("2", "4"),
    }  # fmt: skip
    check_paths(supernet, IMAGES)
    subnet = supernet.extract(dict.fromkeys(supernet.default, 0)).block
    assert subnet.depthwise.groups == subnet.norm.num_features == subnet.excite.out_channels == 4


def test_a_squeezed_layer_is_no_expansion_unless_its_ratio_is_asked_for():
    supernet = converted(Net(), IMAGES, squeezed=expansion("block", ratios=(0.05, 3)))
    assert {entry.name: entry.options for entry in supernet.decisions} == {
        "block.expand:expansion": ("1", "12", "24"), "block.squeeze:expansion": ("1", "3"),
    }  # fmt: skip


def test_a_block_without_a_hidden_layer_is_refused_by_name():
    with pytest.raises(TargetError, match="'stem' matches no module with a hidden layer inside"):
        converted(Net(), IMAGES, expansion=expansion("block", "stem"))
    with pytest.raises(TargetError, match=r"make no hidden layer smaller: 'mlp.gate' makes 12 of 4"):
        converted(Net(), IMAGES, expansion=expansion("mlp", ratios=(3, 4)))


def test_a_hidden_layer_has_one_entry_of_the_space():
    width = ElasticWidth(targets=Targets(include=("mlp.up",)), fractions=(0.5, 1.0))
    with pytest.raises(TargetError, match=r"'mlp.(up:width|gate:expansion)' would vary positions of a 'weight'"):
        converted(Net(), IMAGES, expansion=expansion("mlp"), width=width)


@pytest.mark.parametrize("settings", [{"ratios": ()}, {"ratios": (0, 1)}, {"ratios": (2, 1)}, {"divisor": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"ratios must ascend from above 0|divisor must be at least 1"):
        expansion("block", **settings)


def test_counts_keep_to_the_divisor():
    assert expansion("block", ratios=(1, 2, 3), divisor=8).counts(size=96, width=20) == (16, 40, 64, 96)
