"""Records hold tensors bit for bit."""

import pytest
import torch

from lightning_optim.distillation.cache.layout import Layout

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
TYPES += [torch.int8, torch.uint8, torch.bool]


def tensors(samples=3):
    found = {str(dtype): torch.randn(samples, 2, 3).to(dtype) for dtype in TYPES}
    found |= {"scalar": torch.arange(samples).bool(), "empty": torch.zeros(samples, 0, 2)}
    found |= {"nan": torch.full((samples, 1), torch.nan), "turned": torch.randn(2, samples, 4).transpose(0, 1)}
    return found


def test_tensors_come_back_bit_for_bit():
    given = tensors()
    layout = Layout.of(given)
    back = layout.unpack(layout.pack(given))
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        torch.testing.assert_close(back[name], tensor, rtol=0.0, atol=0.0, equal_nan=True)


def test_a_layout_is_read_as_it_is_written():
    layout = Layout.of(tensors())
    assert Layout.read([[name, dtype, list(shape)] for name, dtype, shape in layout.fields]) == layout


@pytest.mark.parametrize("fields", [[["a", "object", [1]]], [["a", "float32", [-1]]], [["a", "float32"]]])
def test_what_is_no_layout_is_refused(fields):
    with pytest.raises(ValueError, match=r"no layout|unpack"):
        Layout.read(fields)


def test_a_number_format_that_cannot_be_written_is_named():
    with pytest.raises(ValueError, match="answers in complex64 cannot be kept"):
        Layout.of({"wave": torch.zeros(2, 1, dtype=torch.complex64)})
