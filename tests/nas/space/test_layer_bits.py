import copy

import pytest
import torch
from torch import nn

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.cost import WeightBytes
from lightning_optim.errors import TargetError
from lightning_optim.nas import (
    BitWidths,
    ElasticKernel,
    ElasticWidth,
    LayerBits,
    OperationChoice,
    find_bits,
    release_bits,
)
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet
from lightning_optim.quantization import Affine, LayerQuantizers, Symmetric
from lightning_optim.surgery.rounded import rounded_activation, rounded_weight
from nas_laws import assert_same, check_paths, converted, outputs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.mix, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.mix(self.norm(self.stem(x)).relu()).mean((2, 3)))


IMAGES = (torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)),)


def layer_bits(*include, **settings):
    return LayerBits(targets=Targets(include=include or ("*",)), **settings)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_that_of_torch_and_of_this_packages_quantizers(bits):
    torch.manual_seed(0)
    weight, x, most = torch.randn(3, 4, 2), torch.randn(5, 7), 2 ** (bits - 1) - 1
    scale = weight.abs().amax((1, 2)) / most
    zeros = torch.zeros(3, dtype=torch.int)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -most, most)
    torch.testing.assert_close(rounded_weight(weight, bits), expected)
    quantizer = Symmetric(bits=bits, portable=False)
    torch.testing.assert_close(quantizer.weight_scale(weight).flatten(), scale)
    affine = Affine(bits=bits)
    torch.testing.assert_close(rounded_activation(x, bits), affine.fake(x, *affine.qparams(x.min(), x.max())))


def test_gradients_pass_straight_through():
    x = torch.randn(3, 4, requires_grad=True)
    (rounded_activation(x, 2) * torch.arange(4.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(4.0).expand(3, 4))
    weight = torch.zeros(2, 3, requires_grad=True)
    assert torch.equal(rounded_weight(weight, 4), weight)


def test_bits_compose_with_widths_kernels_and_a_choice_of_the_same_layer():
    torch.manual_seed(0)
    choice = OperationChoice(targets=Targets(include=("mix",)), candidates={"other": lambda: nn.Conv2d(4, 4, 1)})
    space = {
        "bits": layer_bits("stem", "mix", bits=[[2, 4], [4, None]]), "choice": choice,
        "kernels": ElasticKernel(targets=Targets(include=("stem", "mix")), sizes=(1,)),
        "widths": ElasticWidth(targets=Targets(include=("stem",)), fractions=(0.5, 1.0)),
    }  # fmt: skip
    supernet = converted(Net(), IMAGES, **space)
    bits = {entry.name: (entry.options, entry.default, len(entry.conditions)) for entry in supernet.decisions}
    assert bits["stem:bits"] == (("w2a4", "w4", "float"), 2, 0)
    assert bits["mix:bits"] == (("w2a4", "w4", "float"), 2, 1)
    check_paths(supernet, IMAGES)


def test_chosen_bits_are_what_a_network_weighs_and_what_quantization_is_given():
    torch.manual_seed(0)
    supernet = converted(Net(), IMAGES, bits=layer_bits("stem", "head", bits=[[2, 8], [4, 8]]))
    chosen = {"stem:bits": 1, "head:bits": 0}
    own, fewer = (supernet.measure(each, WeightBytes()) for each in (supernet.default, chosen))
    assert own - fewer == 4 * 9 * (4 - 4 / 8) + 8 * (4 - 2 / 8)
    subnet = supernet.extract(chosen)
    assert find_bits(subnet) == {"stem": BitWidths(weight=4, activation=8), "head": BitWidths(weight=2, activation=8)}
    layers = {
        name: LayerQuantizers(targets=Targets(include=[name]), weight_quantizer=Symmetric(bits=widths.weight),
                              activation_quantizer=Affine(bits=widths.activation))
        for name, widths in release_bits(subnet).items()
    }  # fmt: skip
    assert {name: entry.weight_bits for name, entry in QATFakeQuant(layers=layers).layers.items()} == {
        "stem": 4,
        "head": 2,
    }
    assert find_bits(subnet) == {}
    assert_same(outputs(subnet.eval(), IMAGES), outputs(supernet.extract(supernet.default).eval(), IMAGES))


def test_an_exception_leaves_the_layer_its_weight():
    supernet = converted(Net(), IMAGES, bits=layer_bits("stem"))
    for net in (supernet.site.root, supernet.extract({"stem:bits": 0})):
        supernet.activate({"stem:bits": 0})
        weight = net.stem.weight
        with pytest.raises(RuntimeError):
            net(torch.ones(2, 5, 6, 6))
        assert net.stem.weight is weight
        assert isinstance(copy.deepcopy(net).stem.weight, nn.Parameter)


def test_without_float_the_last_pair_holds():
    net = Net().eval()
    plain = copy.deepcopy(net)(*IMAGES)
    bits = layer_bits("stem", bits=[[2, 2]], or_float=False)
    supernet = build_supernet(Site(root=net, network="", args=IMAGES), {"bits": bits})
    assert not torch.equal(net(*IMAGES), plain)
    assert supernet.decisions[0].options == ("w2a2",)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x):
        return self.layer(x)


def test_an_encoder_of_torchs_rounds_in_evaluation_too_and_what_it_never_calls_is_refused():
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 4),)
    supernet = converted(Encoder(), x, bits=layer_bits("layer.linear*", bits=[[2, 4]]))
    check_paths(supernet, x)
    with pytest.raises(RuntimeError, match=r"no forward pass went through 'layer.self_attn.out_proj'"):
        converted(Encoder(), x, bits=layer_bits("layer.self_attn.out_proj"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": []}, "bits must be pairs"), ({"bits": [[4]]}, "bits must be pairs"),
        ({"bits": [[1, 8]]}, "2 to 16 each"), ({"bits": [[None, 8]]}, "bits must be pairs"),
        ({"bits": [[4, 8], [4, 8]]}, "must stand once"),
    ],
)  # fmt: skip
def test_bits_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        layer_bits(**settings)


def test_a_weight_that_is_computed_is_refused_by_name():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TargetError, match="the weight of '0' is computed by a parametrization"):
        converted(net, (torch.ones(2, 2),), bits=layer_bits())


def test_a_network_that_rounds_already_is_searched_again_without_its_rounding():
    supernet = converted(Net(), IMAGES, bits=layer_bits("stem"))
    subnet = supernet.extract({"stem:bits": 0})
    widths = ElasticWidth(targets=Targets(include=("stem",)), fractions=(0.5, 1.0))
    with pytest.raises(TargetError, match="'stem' rounds to w4a8 as an earlier search has chosen"):
        converted(subnet, IMAGES, widths=widths)
    release_bits(subnet)
    check_paths(converted(subnet, IMAGES, widths=widths), IMAGES, num=1)
