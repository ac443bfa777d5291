import pytest
import torch
from torch import nn

from lightning_optim.demo import ResidualNet


def test_the_default_is_a_resnet_8():
    net = ResidualNet()
    main_path = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(main_path) + 1 == 8
    # stem, three blocks of two 3 x 3 convolutions, two projections, norms, head
    convolutions = 9 * (32 + 2 * 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 32 * 64 + 64 * 128
    norms = 2 * (32 + 2 * 32 + 3 * 64 + 3 * 128)
    assert sum(p.numel() for p in net.parameters()) == convolutions + norms + 1290


@pytest.mark.parametrize(("blocks", "depth"), [(1, 8), (3, 20), ([1, 2, 3], 14)])
def test_depth_follows_the_blocks(blocks, depth):
    net = ResidualNet(widths=(4, 8, 16), blocks=blocks)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth


def test_a_strided_stem_quarters_the_work_of_all_behind_it():
    images = torch.rand(2, 3, 32, 32)
    for stride in (1, 2):
        net = ResidualNet(widths=(4, 8), in_channels=3, num_classes=5, stem_stride=stride)
        sizes = []
        net.layers[0].register_forward_hook(lambda _, __, output, sizes=sizes: sizes.append(output.shape[-1]))
        assert net(images).shape == (2, 5)
        assert sizes == [32 // stride]


def test_a_stage_without_width_or_blocks_is_refused():
    for wrong in ({"widths": ()}, {"blocks": (1, 1)}, {"widths": (8, 0)}, {"blocks": 0}):
        with pytest.raises(ValueError, match="a width and blocks of at least 1 per stage"):
            ResidualNet(**wrong)
