import pytest
import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.nas import ElasticWidth, OperationChoice, Sandwich
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet


def supernet():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    wide = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))
    space = {
        "mix": OperationChoice(targets=Targets(include=["2"]), candidates={"skip": nn.Identity, "wide": wide}),
        "width": ElasticWidth(targets=Targets(include=["0"]), fractions=[0.5, 1.0]),
    }
    return build_supernet(Site(root=net, network="", args=(torch.ones(2, 6),)), space)


def test_a_step_has_the_largest_path_first_then_the_smallest_then_random_ones():
    made = supernet()
    state = Sandwich(random_paths=3).start(made, 0)
    widths = made.decisions[1].name
    for step in range(5):
        largest, smallest, *between = (path.architecture for path in state.paths(step, 0.0))
        assert largest == {"2:operation": 2, widths: 1}
        assert smallest == {"2:operation": 1, widths: 0}
        assert len(between) == 3
    assert state.paths(0, 0.0) != state.paths(1, 0.0)
    assert state.temperature == 1.0


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="random_paths must be at least 0"):
        Sandwich(random_paths=-1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        Sandwich(temperature=0.0)
