"""Candidates that fit the place they are for, and targets that are one decision."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.nas import OperationChoice
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet


def stack():
    def conv(before, after, stride):
        return nn.Conv2d(before, after, 3, stride, padding=1)

    return nn.Sequential(conv(1, 4, 1), conv(4, 4, 1), conv(4, 6, 2), conv(6, 6, 1))


def converted(net, **settings):
    candidates = {"pointwise": partial(nn.Conv2d, kernel_size=1)}
    choice = OperationChoice(targets=Targets(include=("[1-3]",)), candidates=candidates, **settings)
    return build_supernet(Site(root=net, network="", args=(torch.randn(2, 1, 8, 8),)), {"operation": choice})


def test_a_factory_is_told_the_channels_and_the_stride_of_each_place():
    net = stack()
    supernet = converted(net)
    built = [net[place]._candidates.pointwise for place in (1, 2, 3)]
    assert [(each.in_channels, each.out_channels, each.stride) for each in built] == [
        (4, 4, (1, 1)),
        (4, 6, (2, 2)),
        (6, 6, (1, 1)),
    ]
    assert [decision.name for decision in supernet.decisions] == ["1:operation", "2:operation", "3:operation"]


@pytest.mark.parametrize(
    ("alike", "names"),
    [
        ("[13]", ["1:operation", "2:operation"]),  # without a group, all that match are one
        ("([13])", ["1:operation", "2:operation", "3:operation"]),
        ("", ["1:operation"]),
        ("2", ["1:operation", "2:operation", "3:operation"]),
    ],
)
def test_targets_of_the_same_groups_are_one_decision_which_all_of_them_follow(alike, names):
    net, x = stack(), torch.randn(2, 1, 8, 8)
    supernet = converted(net, alike=alike)
    assert [decision.name for decision in supernet.decisions] == names
    for options in itertools.product((0, 1), repeat=len(names)):
        architecture = dict(zip(names, options, strict=True))
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert torch.equal(net(x), subnet(x))
        if alike == "[13]":
            assert [subnet[place].kernel_size[0] for place in (1, 2, 3)] == [
                (3, 1)[options[0]],
                (3, 1)[options[1]],
                (3, 1)[options[0]],
            ]


def test_an_expression_that_is_none_or_is_found_nowhere_is_refused():
    with pytest.raises(ValueError, match="alike must be a regular expression, got '\\('"):
        converted(stack(), alike="(")
    with pytest.raises(TargetError, match="alike='edges' is found in none of the targets"):
        converted(stack(), alike="edges")
