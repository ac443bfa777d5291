import copy

import pytest
import torch
from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery import apply_cut
from lightning_optim.surgery.bypass import Bypass, bypass_of
from lightning_optim.surgery.rebind import rebind_optimizer
from lightning_optim.surgery.resize import resize, sizes_of

NOTHING = torch.empty(0, dtype=torch.long)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 7), (2, 5, 4)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
        (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), dilation=2), (2, 4, 13, 14)),
        (nn.Conv2d(4, 6, (4, 3), padding="same"), (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 7)),
        (nn.Conv3d(4, 8, 2, stride=2, groups=4), (1, 4, 5, 6, 7)),
        (nn.BatchNorm2d(4), (2, 4, 3, 3)),
        (nn.GELU(), (2, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_zeros_are_shaped_as_the_modules_output(module, shape):
    x = torch.randn(shape, dtype=torch.float64)
    zeros = bypass_of(module)(x)
    assert zeros.shape == module.double()(x).shape
    assert zeros.dtype == x.dtype
    assert not zeros.any()
    zeros.add_(1)  # as ``out += identity`` does
    assert not list(bypass_of(module).state_dict())


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_attention_gives_zeros_and_no_weights(batch_first):
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    query, key = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    output, weights = bypass_of(module)(query, key, value=key)
    assert torch.equal(output, torch.zeros_like(module(query, key, key)[0]))
    assert weights is None


def test_an_optimizer_forgets_what_was_taken_out_and_keeps_the_rest():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    moments = copy.deepcopy([optimizer.state[p]["exp_avg"] for p in net[2].parameters()])
    replaced = apply_cut(net, {"1": [(0, NOTHING)]})
    rebind_optimizer(optimizer, replaced)
    assert isinstance(net[1], Bypass)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
    assert set(optimizer.state) == set(net.parameters())
    assert all(
        torch.equal(one, optimizer.state[p]["exp_avg"]) for one, p in zip(moments, net[2].parameters(), strict=True)
    )


def test_a_fresh_network_is_brought_to_the_same_shape_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert sizes_of(net, "1") == (1,)
    for _ in range(2):
        resize(net, {"1": [[0, NOTHING, 1]]})
        assert sizes_of(net, "1") == (0,)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]


def test_a_module_that_is_registered_twice_is_taken_out_everywhere():
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"one": shared, "other": shared})
    apply_cut(net, {"one": [(0, NOTHING)]})
    assert net["one"] is net["other"]
    assert not list(net.parameters())


def test_a_module_is_not_cut_in_part():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ShrinkError, match="it can be taken out, but not in part"):
        apply_cut(net, {"0": [(0, torch.tensor([0]))]})
    assert isinstance(net[0], nn.Linear)
