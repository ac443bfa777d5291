"""Pools that compete are one for an allocation, and have masks of their own again."""

import torch

from lightning_optim.pruning import GlobalThreshold, Uniform
from lightning_optim.pruning.structure.functional import allocate_jointly

SCORES = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0]), "c": torch.tensor([[9.0, 3.0]])}


def test_pools_that_compete_lose_the_lowest_of_all_of_them():
    found = allocate_jointly(SCORES, [("b", "a"), ("c",)], lambda joint: Uniform()(joint, 0.5))
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "a": [False, True],  # of 1, 4 and 2 two go
        "b": [False],
        "c": [[True, False]],
    }


def test_pools_that_stand_alone_are_allocated_as_they_are():
    found = allocate_jointly(SCORES, [(name,) for name in SCORES], lambda joint: GlobalThreshold()(joint, 0.4))
    expected = GlobalThreshold()(SCORES, 0.4)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())


def test_an_allocation_sees_the_names_of_all_pools_that_compete():
    seen = []

    def allocate(joint):
        seen.append({name: score.tolist() for name, score in joint.items()})
        return Uniform()(joint, 0.0)

    allocate_jointly(SCORES, [("a", "b"), ("c",)], allocate)
    assert seen == [{"a, b": [1.0, 4.0, 2.0], "c": [[9.0, 3.0]]}]
