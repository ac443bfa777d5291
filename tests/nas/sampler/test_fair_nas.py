from collections import Counter

import pytest
import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.nas import FairNAS, OperationChoice
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet
from support import three_choices


def drawn(sampler, supernet, steps, seed=0):
    state = sampler.start(supernet, seed)
    return [[path.architecture for path in state.paths(step, 0.0)] for step in range(steps)]


def test_a_step_has_every_option_of_each_decision_once():
    supernet = three_choices(4)
    for paths in drawn(FairNAS(), supernet, 20):
        assert len(paths) == 4
        for decision in supernet.decisions:
            assert sorted(path[decision.name] for path in paths) == [0, 1, 2, 3]


def test_decisions_of_unlike_size_are_drawn_equally_often_up_to_one_at_any_moment():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    two = OperationChoice(targets=Targets(include=["0"]), candidates={"skip": nn.Identity})
    three = OperationChoice(targets=Targets(include=["1"]), candidates={"skip": nn.Identity, "tanh": nn.Tanh})
    supernet = build_supernet(Site(root=net, network="", args=(torch.ones(1, 4),)), {"two": two, "three": three})
    paths = [path for step in drawn(FairNAS(), supernet, 25) for path in step]
    for decision in supernet.decisions:
        for end in range(1, len(paths)):
            counts = Counter(path[decision.name] for path in paths[:end])
            found = [counts[option] for option in range(len(decision.options))]
            assert max(found) - min(found) <= 1


def test_paths_are_a_function_of_seed_and_step():
    supernet = three_choices(3)
    assert drawn(FairNAS(), supernet, 5) == drawn(FairNAS(), three_choices(3), 5)
    assert drawn(FairNAS(), supernet, 5) != drawn(FairNAS(), supernet, 5, seed=1)
    assert [len(step) for step in drawn(FairNAS(paths=2), supernet, 2)] == [2, 2]


def test_no_path_is_refused():
    with pytest.raises(ValueError, match="paths must be at least 1"):
        FairNAS(paths=0)
