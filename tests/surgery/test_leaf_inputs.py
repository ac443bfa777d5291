import torch
from torch import nn

from lightning_optim.surgery.leaf_inputs import LeafInputs


class Net(nn.Module):
    def forward(self, batch, *, scale):
        self.seen = (batch["x"], batch["y"], scale)
        return batch["x"] * scale


def test_inputs_in_floating_point_are_leaves_while_it_is_open():
    batch, scale, inputs = {"x": torch.ones(2), "y": torch.ones(2, dtype=torch.long)}, torch.ones(2), LeafInputs()
    for is_root in (False, True):
        net = Net()
        inputs.open(net, is_root=is_root)
        assert net(batch, scale=scale).requires_grad
        x, y, factor = net.seen
        assert x.is_leaf
        assert x.requires_grad
        assert factor.requires_grad
        assert x.data_ptr() == batch["x"].data_ptr()
        assert y is batch["y"]
        assert not batch["x"].requires_grad
        inputs.close()
        inputs.close()
        assert not net(batch, scale=scale).requires_grad
        assert not net._forward_pre_hooks
        assert "forward" not in vars(net)


def test_an_input_with_a_gradient_is_handed_on_as_it_is():
    net, inputs, x = Net(), LeafInputs(), torch.ones(2, requires_grad=True) * 2.0
    inputs.open(net, is_root=False)
    net({"x": x, "y": x}, scale=x)
    assert net.seen[0] is x
    inputs.close()
