import pytest
import torch
import torch.nn.functional as F

from lightning_optim.demo import VisionTransformer
from lightning_optim.demo.model.vit import Attention


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    layer, tokens = Attention(dim=12, num_heads=3), torch.rand(2, 5, 12)
    qkv = layer.qkv(tokens).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(layer(tokens), layer.proj(mixed))


def test_position_matters():
    torch.manual_seed(0)
    net, images = VisionTransformer(dim=16, depth=1, hidden=32).eval(), torch.rand(1, 1, 16, 16)
    swapped = torch.cat([images[..., 8:, :], images[..., :8, :]], dim=-2)
    assert not torch.allclose(net(images), net(swapped), atol=1e-4)


def test_sizes_that_do_not_divide_are_refused():
    for wrong in ({"patch": 5}, {"num_heads": 5}):
        with pytest.raises(ValueError, match="must divide"):
            VisionTransformer(**wrong)
