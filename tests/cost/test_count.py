"""Multiply-accumulates by hand, however a model has to be run to count them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.cost import count_macs

B, T, D, H = 2, 5, 8, 4  # batch, steps, width, hidden
PROJECTIONS, ATTENTION = 4 * B * T * D * D, 2 * B * T * T * D
RECURRENT = B * T * 4 * H * (D + H)


class Reader(nn.Module):
    """Asks a mask for its values, as encoders do that skip a mask without padding."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.lstm = nn.LSTM(D, H, batch_first=True)

    def forward(self, x, mask):
        padding = None if mask.all() else mask[:, None, None, :]
        heads = [layer(x).unflatten(2, (2, D // 2)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=padding)
        x = self.out(mixed.transpose(1, 2).flatten(2))
        return self.lstm(self.attention(x, x, x, need_weights=False)[0])[0]


@pytest.mark.parametrize("padded", [0, 2])
def test_a_model_that_reads_values_is_counted_whole(padded):
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, T - padded :] = False
    model = Reader()
    assert count_macs(model, (torch.randn(B, T, D),), {"mask": mask}) == 2 * (PROJECTIONS + ATTENTION) + RECURRENT
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_without_values_that_reads_values_is_refused():
    with torch.device("meta"):
        model = Reader()
    with pytest.raises(RuntimeError, match="meta"):
        count_macs(model, (torch.randn(B, T, D), torch.ones(B, T, dtype=torch.bool)))


def test_a_fault_of_the_model_is_told_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(nn.Linear(3, 2), (torch.ones(1, 4),))
