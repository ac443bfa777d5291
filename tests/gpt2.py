"""A network in the form of GPT-2 as ``transformers`` has it: linear layers whose weight is ``[in, out]``."""

import torch
from torch import nn
from torch.nn import functional as F


class Conv1D(nn.Module):
    """A linear layer, written as in ``transformers.pytorch_utils``."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.2)

    def forward(self, x):
        size_out = x.size()[:-1] + (self.nf,)  # noqa: RUF005  # as it is written there
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


class Linear(nn.Linear):
    """The same layer with its weight as torch has it."""

    def __init__(self, nf, nx):
        super().__init__(nx, nf)


class Attention(nn.Module):
    def __init__(self, width, num_heads, layer):
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = num_heads, width // num_heads, width
        self.c_attn, self.c_proj = layer(3 * width, width), layer(width, width)

    def forward(self, x):
        parts = self.c_attn(x).split(self.split_size, dim=2)
        q, k, v = (part.view(*part.shape[:-1], -1, self.head_dim).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.c_proj(mixed.reshape(*mixed.shape[:-2], -1).contiguous())


class MLP(nn.Module):
    def __init__(self, width, hidden, layer):
        super().__init__()
        self.c_fc, self.c_proj = layer(hidden, width), layer(width, hidden)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width, num_heads, layer):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, num_heads, layer), MLP(width, 4 * width, layer)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Two blocks over a sequence of vectors; ``layer`` is ``Conv1D`` or ``Linear``."""

    def __init__(self, layer=Conv1D, width=16, num_heads=4, classes=4):
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.h = nn.ModuleList(Block(width, num_heads, layer) for _ in range(2))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x).mean(1))


def twins():
    """The same function twice: with weights ``[in, out]``, and with torch's layers."""
    torch.manual_seed(0)
    net, twin = GPT2(Conv1D), GPT2(Linear)
    turned = {name for name, module in net.named_modules() if isinstance(module, Conv1D)}
    state = {
        name: value.T.contiguous() if name.removesuffix(".weight") in turned else value
        for name, value in net.state_dict().items()
    }
    twin.load_state_dict(state)
    return net, twin
