import pytest
from torch import nn

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.regularization import L1, L2, Slimming
from lightning_optim.regularization.selection import check_trained, select_weights


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3))


def test_weights_are_named_in_order_and_shared_ones_once():
    shared = net()
    shared[3].weight = shared[0].weight
    assert list(select_weights(shared, "l2", L2(parameters="all"), Targets())) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.bias",
    ]
    assert list(select_weights(shared, "l1", L1(), Targets(include=("3",)))) == ["3.weight"]


def test_what_takes_a_weights_place_is_found_there():
    module = net()
    place = select_weights(module, "l1", L1(), Targets())["0.weight"]
    module[0].weight = nn.Parameter(module[0].weight.detach()[:2])
    assert place.parameter is module[0].weight


def test_a_glob_without_a_weight_and_a_layer_without_a_parameter_are_refused():
    with pytest.raises(TargetError, match="'2' matches no module that has a weight for L1"):
        select_weights(net(), "l1", L1(), Targets(include=("0", "2")))
    module = net()
    module[1] = nn.BatchNorm1d(3, affine=False)
    with pytest.raises(TargetError, match=r"'slim' needs a parameter 'weight' of '1' \(BatchNorm1d\)"):
        select_weights(module, "slim", Slimming(), Targets())


def test_frozen_weights_and_those_of_no_optimizer_are_refused():
    module = net()
    weights = select_weights(module, "l1", L1(), Targets())
    check_trained("l1", weights, ())
    with pytest.raises(TargetError, match=r"'3.weight' would do nothing, since that is in no optimizer"):
        check_trained("l1", weights, {id(module[0].weight)})
    module[0].weight.requires_grad_(False)
    with pytest.raises(TargetError, match=r"'0.weight' would do nothing, since that is frozen: leave it out"):
        check_trained("l1", weights, ())
