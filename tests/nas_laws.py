"""Laws of every path of a supernet, whatever kinds of decision it has."""

import copy
import random

import torch
from torch import nn

from lightning_optim.cost import MACs, count_macs
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import Supernet, build_supernet
from lightning_optim.surgery.copies import copy_model


def converted(net, args, kwargs=None, **space):
    """Convert a network, and check that it computes what it did and that its keys stay."""
    plain = copy.deepcopy(net)
    before, keys = outputs(plain.eval(), args, kwargs), list(net.state_dict())
    supernet = build_supernet(Site(root=net, network="", args=args, kwargs=kwargs or {}), space)
    assert [key for key in net.state_dict() if "._candidates." not in key] == keys
    assert_same(outputs(net.eval(), args, kwargs), before)
    net.load_state_dict(plain.state_dict())
    return supernet


def outputs(net, args, kwargs=None):
    """What a network returns, as a list of tensors; random numbers are the same each time."""
    torch.manual_seed(5)
    found = net(*args, **(kwargs or {}))
    values = found if isinstance(found, (tuple, list)) else found.values() if isinstance(found, dict) else [found]
    return [value for value in values if isinstance(value, torch.Tensor)]


def assert_same(left, right):
    assert len(left) == len(right) > 0
    assert all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def architectures(supernet, num=8):
    """Each option of each decision, others as the user has them; then some that are drawn."""
    for decision in supernet.decisions:
        for option in range(len(decision.options)):
            yield supernet.default | {decision.name: option}
    yield from (supernet.space.sample(random.Random(f"{seed}")) for seed in range(num))


def check_paths(supernet, args, kwargs=None, num=8, *, has_macs=True):
    """Check that each path and its extracted network are equal to the bit, in what they return, learn and cost."""
    root = supernet.site.root
    for architecture in architectures(supernet, num):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        for module in (root, subnet):
            module.eval()
        assert_same(outputs(root, args, kwargs), outputs(subnet, args, kwargs))
        with torch.no_grad():
            assert_same(outputs(root, args, kwargs), outputs(subnet, args, kwargs))
            assert_same(outputs(copy.deepcopy(root), args, kwargs), outputs(copy.deepcopy(subnet), args, kwargs))
        check_step(supernet, architecture, subnet, args, kwargs)
        if has_macs:
            counted = count_macs(subnet, *_inputs(supernet))
            assert supernet.measure(architecture, MACs()) == counted // supernet.site.num_samples, architecture


def check_step(supernet, architecture, subnet, args, kwargs):
    """Check that a training step of a path gives each of its weights the gradient that the subnet's have."""
    root = supernet.site.root
    before = copy.deepcopy(root.state_dict())
    for module in (root, subnet):
        module.train().zero_grad()
        sum(each.square().sum() for each in outputs(module, args, kwargs) if each.requires_grad).backward()
    gradients = copy_model(root)
    with torch.no_grad():
        for parameter, own in zip(gradients.parameters(), root.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(own) if own.grad is None else own.grad)
    expected = dict(
        Supernet(_moved(supernet.site, gradients), supernet.decisions).extract(architecture).named_parameters()
    )
    found = dict(subnet.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.equal(gradient, expected[name]), name
    total = sum(float(each.grad.abs().sum(dtype=torch.float64)) for each in root.parameters() if each.grad is not None)
    left = sum(float(each.grad.abs().sum(dtype=torch.float64)) for each in subnet.parameters() if each.grad is not None)
    assert abs(total - left) <= 1e-9 * max(total, 1.0), "weights outside the path have learned"
    root.load_state_dict(before)
    root.zero_grad()


def _inputs(supernet):
    site = supernet.site
    return site.args, dict(site.kwargs)


def _moved(site, root: nn.Module):
    return Site(root=root, network=site.network, args=site.args, kwargs=site.kwargs, seed=site.seed)
