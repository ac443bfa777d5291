import torch
from torch import nn

from lightning_optim.surgery.output_layers import output_layers


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(self.stem(x).relu())
        one = self.one(x)
        return {"one": one.unsqueeze(0), "two": self.two(x).softmax(-1)}


def test_every_head_is_found_and_nothing_else_changes():
    net = TwoHeads()
    net.drop.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert output_layers(net, layers, (torch.ones(2, 3),), {}) == {"one", "two"}
    assert torch.equal(before, torch.get_rng_state())
    assert net.training
    assert not net.drop.training
    assert not any(module._forward_hooks for module in net.modules())
