import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.nas import ElasticKernel, ElasticWidth
from nas_laws import check_paths, converted


def kernels(*include, sizes=(3, 5, 7), exclude=()):
    return ElasticKernel(targets=Targets(include=include or ("*",), exclude=exclude), sizes=sizes)


class Net(nn.Module):
    """Dilated, depthwise, strided, factorized, padded outside, circular, reflected, transposed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, padding=2)
        self.depthwise = nn.Conv2d(8, 8, 7, padding=6, dilation=2, groups=8, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.outside = nn.Sequential(nn.ZeroPad2d((1, 2, 2, 1)), nn.Conv2d(8, 8, 4))
        self.circular = nn.Conv2d(8, 8, 5, padding=2, padding_mode="circular")
        self.factor = nn.Conv2d(8, 8, (1, 5), padding="same", padding_mode="reflect")
        self.transposed = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.depthwise(self.stem(x).relu()))
        x = self.factor(self.circular(self.outside(x).relu()).relu()).relu()
        return self.head(self.transposed(x).mean((2, 3)))


IMAGES = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def test_every_kernel_with_widths_of_the_same_layers_is_extracted_bit_for_bit():
    torch.manual_seed(0)
    space = {
        "widths": ElasticWidth(targets=Targets(exclude=("head",)), fractions=(0.5, 1.0)),
        "odd": kernels(exclude=("outside.1", "transposed")),
        "even": kernels("outside.1", "transposed", sizes=(2,)),
    }
    supernet = converted(Net(), IMAGES, **space)
    options = {decision.name: decision.options for decision in supernet.decisions if "kernel" in decision.name}
    assert options == {
        "stem:kernel": ("3", "5"), "depthwise:kernel": ("3", "5", "7"), "circular:kernel": ("3", "5"),
        "factor:kernel": ("1x3", "1x5"), "outside.1:kernel": ("2", "4"), "transposed:kernel": ("2", "4"),
    }  # fmt: skip
    check_paths(supernet, IMAGES)
    subnet = supernet.extract(dict.fromkeys(supernet.default, 0))
    assert subnet.outside[0].padding == (0, 1, 1, 0)
    assert (subnet.depthwise.kernel_size, subnet.depthwise.padding, subnet.depthwise.groups) == ((3, 3), (2, 2), 4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_cropped_kernel_is_the_whole_one_with_zeros_around_its_centre(dims):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(0)
    net = nn.Sequential(kind(2, 3, 5, padding=4, dilation=2), nn.Flatten())
    x = torch.randn(2, 2, *[6] * dims)
    supernet = converted(net, (x,), kernel=kernels("0", sizes=(1, 3)))
    for option, rim in enumerate((2, 1, 0)):
        supernet.activate({"0:kernel": option})
        masked = F.pad(net[0].weight[(..., *[slice(rim, 5 - rim)] * dims)], [rim] * 2 * dims)
        expected = getattr(F, f"conv{dims}d")(x, masked, net[0].bias, padding=4, dilation=2)
        torch.testing.assert_close(net(x), expected.flatten(1))
    check_paths(supernet, (x,))


def test_convolutions_of_one_weight_are_one_decision():
    net = nn.Sequential(nn.Conv1d(2, 2, 5, padding=2), nn.Tanh(), nn.Conv1d(2, 2, 5, padding=4, dilation=2))
    net[2].weight = net[0].weight
    x = torch.randn(2, 2, 8)
    supernet = converted(net, (x,), kernel=kernels())
    assert [decision.name for decision in supernet.decisions] == ["0:kernel"]
    check_paths(supernet, (x,))
    assert supernet.extract({"0:kernel": 0})[2].padding == (2,)


def test_kernels_that_are_small_already_are_left_alone():
    net = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 5, padding=2))
    supernet = converted(net, (torch.randn(2, 2, 8),), kernel=kernels())
    assert [decision.name for decision in supernet.decisions] == ["1:kernel"]


class Borrowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x):
        return F.conv1d(x, self.conv.weight, padding=1)


@pytest.mark.parametrize(
    ("net", "sizes", "message"),
    [
        (lambda: nn.Sequential(nn.Conv1d(2, 2, 3)), (1,), "'0' pads its input by \\[0\\], which is too little"),
        (lambda: nn.Sequential(nn.Conv1d(2, 2, 4, padding=2)), (3,), "has not the centre of '0', whose kernel is 4"),
        (lambda: nn.Sequential(nn.Conv1d(2, 2, 3, padding=1)), (3, 5), "largest kernel of '0' is 3"),
        (lambda: nn.Sequential(nn.Linear(8, 2)), (3,), "matches 1 modules, none of them a"),
        (lambda: nn.Sequential(weight_norm(nn.Conv1d(2, 2, 3, padding=1))), (1,), "'0'.*parametrization"),
        (Borrowed, (1,), "no forward pass went through 'conv'"),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_be_cropped_is_refused_by_name(net, sizes, message):
    net = net()
    before = {name: sorted(vars(module)) for name, module in net.named_modules()}
    with pytest.raises((TargetError, RuntimeError), match=message):
        converted(net, (torch.randn(2, 2, 8),), kernel=kernels(sizes=sizes))
    assert {name: sorted(vars(module)) for name, module in net.named_modules()} == before


def test_two_entries_for_one_kernel_are_refused():
    with pytest.raises(TargetError, match="two entries of the space decide '0:kernel'"):
        converted(
            nn.Sequential(nn.Conv1d(2, 2, 5, padding=2)), (torch.randn(2, 2, 8),), a=kernels(), b=kernels(sizes=(3,))
        )


@pytest.mark.parametrize("sizes", [(), (0, 3), (5, 3)])
def test_sizes_that_do_not_ascend_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must ascend from at least 1"):
        kernels(sizes=sizes)
