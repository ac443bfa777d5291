import torch
from torch import nn
from torchmetrics import CatMetric, MeanMetric

from lightning_optim.surgery.module_state import ModuleState


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mean, self.all = nn.BatchNorm1d(2), MeanMetric(), CatMetric()
        self.count, self.last, self.losses, self.total = 0, None, [], torch.zeros(1)
        self.register_buffer("queue", torch.zeros(2))

    def forward(self, x):
        x = self.norm(x)
        self.mean.update(x)
        self.all.update(x)
        self.count, self.last = self.count + 1, x
        self.losses.append(x)
        self.total += x.detach().sum()
        self.queue = x.detach()[0].clone()
        return x


def test_what_a_pass_leaves_behind_is_taken_back():
    module, x = Counting(), torch.randn(3, 2)
    first = module(x)
    state, total = ModuleState(module), module.total
    seen = {name: value.clone() for name, value in module.state_dict().items()}
    mean, everything = module.mean.compute(), module.all.compute()
    module(2.0 * x + 1.0)
    state.put_back()
    assert (module.count, module.losses, module.last) == (1, [first], first)
    assert module.total is total
    assert all(torch.equal(value, seen[name]) for name, value in module.state_dict().items())
    module.mean._computed = module.all._computed = None
    assert module.mean.compute() == mean
    assert torch.equal(module.all.compute(), everything)


def test_names_can_be_spared():
    module = Counting()
    state = ModuleState(module, {"count"})
    module(torch.randn(3, 2))
    state.put_back()
    assert (module.count, module.last) == (1, None)


def test_a_tensor_of_inference_mode_is_held_as_it_is():
    module = Counting()
    with torch.inference_mode():
        module.total = module.queue = torch.ones(2)
    held, state = module.total, ModuleState(module)
    module.total = module.queue = torch.zeros(2)
    state.put_back()
    assert module.total is module.queue is held
