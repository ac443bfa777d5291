import pytest
import torch

from lightning_optim.pruning.masks import pack, unpack


@pytest.mark.parametrize("shape", [(0,), (1,), (8,), (9,), (3, 5), (2, 3, 3, 3)])
def test_the_first_entry_is_the_lowest_bit_of_the_first_byte(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = [0] * -(-mask.numel() // 8)
    for place, kept in enumerate(mask.flatten().tolist()):
        expected[place // 8] += kept << (place % 8)
    bits = pack(mask)
    assert bits.dtype is torch.uint8
    assert bits.tolist() == expected
    assert torch.equal(unpack(bits, shape), mask)


def test_the_memory_layout_of_a_mask_does_not_change_its_bits():
    mask = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(pack(mask.contiguous(memory_format=torch.channels_last)), pack(mask))
