import pytest
import torch

from lightning_optim.errors import ExportError
from lightning_optim.export.lowering.blocks import pack_blocks, unpack_blocks


def unpack_by_hand(blocks, num_inputs):
    """Read one integer after the other from the bytes, the first from the lowest bits."""
    rows, num_blocks, num_bytes = blocks.packed.shape
    weight = torch.empty(rows, num_inputs)
    for row in range(rows):
        for place in range(num_inputs):
            block, inside = divmod(place, blocks.size)
            byte, shift = divmod(inside * blocks.bits, 8)
            code = int(blocks.packed[row, block, byte]) >> shift & ((1 << blocks.bits) - 1)
            weight[row, place] = (code - (1 << blocks.bits - 1)) * float(blocks.scale[row, block])
    assert num_bytes == blocks.size * blocks.bits // 8
    assert num_blocks == blocks.scale.shape[1]
    return weight


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(-1, 1, 2), (-2, 1, 2), (-2, 2, 4), (-8, 7, 4), (-8, 8, 8), (-128, 127, 8)]
)
@pytest.mark.parametrize(("num_inputs", "num_groups"), [(10, 1), (96, 1), (96, 6), (96, 3), (256, 2), (512, 2)])
def test_integers_come_back_with_the_scale_of_their_group(low, high, bits, num_inputs, num_groups):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(low, high + 1, (5, num_inputs), generator=generator)
    whole[0, 0], whole[0, 1] = low, high
    scale = torch.rand(5, num_groups, generator=generator) + 0.5
    blocks = pack_blocks(whole.float(), scale)
    expected = whole * scale.repeat_interleave(num_inputs // num_groups, 1)
    assert blocks.bits == bits
    assert torch.equal(unpack_by_hand(blocks, num_inputs), expected)
    assert torch.equal(unpack_blocks(blocks.packed, blocks.scale, num_inputs, bits), expected)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5, 2.0, 1.0])])
def test_one_scale_for_all_or_for_a_channel_stands_in_every_block(scale):
    whole = torch.randint(-7, 8, (3, 300))
    blocks = pack_blocks(whole, scale, narrowest=8)
    assert blocks.bits == 8
    expected = whole * scale.expand(3).unsqueeze(1)
    assert torch.equal(unpack_blocks(blocks.packed, blocks.scale, 300, 8), expected)


def test_the_block_is_the_one_of_the_fewest_bytes():
    assert pack_blocks(torch.ones(1, 192), torch.ones(1), narrowest=8).size == 64  # two of 128 hold 64 too many
    assert pack_blocks(torch.ones(1, 256), torch.ones(1)).size == 128
    assert pack_blocks(torch.ones(1, 3), torch.ones(1)).size == 16


@pytest.mark.parametrize(("num_inputs", "num_groups"), [(64, 8), (40, 2)])
def test_groups_that_no_block_divides_are_refused(num_inputs, num_groups):
    with pytest.raises(ExportError, match=f"multiple of 16 inputs, got {num_inputs // num_groups}"):
        pack_blocks(torch.ones(2, num_inputs), torch.ones(2, num_groups))
