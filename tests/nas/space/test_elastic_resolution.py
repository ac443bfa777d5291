import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.cost import MACs
from lightning_optim.errors import TargetError
from lightning_optim.nas import ElasticResolution, ElasticWidth
from nas_laws import check_paths, converted


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, pixels, scale=1.0):
        return self.head(self.norm(self.stem(pixels * scale)).relu().mean((2, 3)))


IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def test_a_path_is_the_network_on_a_resized_image_and_is_extracted_bit_for_bit():
    torch.manual_seed(0)
    widths = ElasticWidth(targets=Targets(include=("stem",)), fractions=(0.5, 1.0))
    supernet = converted(Net(), IMAGES, size=ElasticResolution(sizes=[4, [6, 10], 8]), widths=widths)
    assert supernet.decisions[0].name == "input:resolution"
    assert supernet.decisions[0].options == ("4", "6x10", "own (8)")
    check_paths(supernet, IMAGES)
    plain = copy.deepcopy(supernet.extract(supernet.default)).eval()
    supernet.activate(supernet.default | {"input:resolution": 1})
    expected = plain(F.interpolate(IMAGES[0], (6, 10), mode="bilinear"))
    assert torch.equal(supernet.site.root.eval()(pixels=IMAGES[0]), expected)
    costs = [supernet.measure(supernet.default | {"input:resolution": option}, MACs()) for option in range(3)]
    assert costs == [4 * 27 * positions + 8 for positions in (16, 60, 64)]


def test_the_extracted_network_keeps_its_keys_and_goes_through_a_file_and_the_exporter():
    supernet = converted(Net(), IMAGES, size=ElasticResolution(sizes=[4]))
    subnet = supernet.extract({"input:resolution": 0}).eval()
    assert list(subnet.state_dict()) == list(Net().state_dict())
    expected = subnet(*IMAGES)
    file = io.BytesIO()
    torch.save(subnet, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(*IMAGES), expected)
    torch.testing.assert_close(torch.export.export(subnet, IMAGES).module()(*IMAGES), expected)


@pytest.mark.parametrize(
    ("net", "x", "sizes", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 2, 1)), IMAGES[0], (4,), r"'input:resolution' at '4' the network returns"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), IMAGES[0], (4,), "does not run with 'input:res"),
        (Net, IMAGES[0], (8,), r"of size \[8, 8\] already"),
        (lambda: nn.Sequential(nn.Embedding(4, 2)), torch.ones(2, 3, dtype=torch.long), (4,), "no images go into the"),
        (Net, IMAGES[0], ((4, 4, 4),), r"images of 2 dimensions need as many numbers a size, or one, got \[4, 4, 4\]"),
    ],
)  # fmt: skip
def test_a_resolution_that_cannot_vary_is_refused(net, x, sizes, message):
    net = net()
    before = {name: sorted(vars(module)) for name, module in net.named_modules()}
    with pytest.raises((TargetError, ValueError), match=message):
        converted(net, (x,), size=ElasticResolution(sizes=sizes))
    assert {name: sorted(vars(module)) for name, module in net.named_modules()} == before


@pytest.mark.parametrize("sizes", [(), (0,), ((4, 0),), ((),)])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        ElasticResolution(sizes=sizes)
