import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.demo import VisionTransformer
from lightning_optim.errors import ArtefactError
from lightning_optim.graph import capture_network, couple
from lightning_optim.pruning import Channel, Layer, Magnitude, MeanActivation, Sensitivity, SensitivityCurve, Weight
from lightning_optim.pruning.sensitivity import check_sparsities, read_sensitivity, sweep


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def curves(network, structure, measure, sparsities=(0.25, 0.5), criterion=None):
    coupling = couple(capture_network(network, (torch.ones(2, 3),))) if structure.needs_coupling else None
    return sweep(
        network,
        ["0", "2", "4"],
        coupling,
        criterion=criterion or Magnitude(),
        structure=structure,
        sparsities=sparsities,
        measure=measure,
    )


def test_one_layer_at_a_time_has_the_zeros_that_were_asked_for(network):
    seen = []

    def measure():
        seen.append([int((network[place].weight == 0).sum()) for place in (0, 2, 4)])
        return float(len(seen))

    found = curves(network, Weight(), measure)
    assert [(curve.pool, curve.size, curve.values) for curve in found] == [
        ("0.weight", 24, (1.0, 2.0)),
        ("2.weight", 32, (3.0, 4.0)),
        ("4.weight", 8, (5.0, 6.0)),
    ]
    assert seen == [[6, 0, 0], [12, 0, 0], [0, 8, 0], [0, 16, 0], [0, 0, 2], [0, 0, 4]]


def test_a_group_of_channels_is_as_good_as_removed(network):
    batch = torch.randn(5, 3)
    found = curves(network, Channel(shrink="never"), lambda: network(batch).sum().item(), (0.5,))
    assert [(curve.pool, curve.size) for curve in found] == [("0.weight", 8), ("2.weight", 4)]
    made, read = network[0].weight.abs().sum(1), network[2].weight.abs().sum(0)
    keep = (made / made.mean() + read / read.mean()).argsort(descending=True)[:4]
    hidden = F.relu(F.linear(batch, network[0].weight[keep], network[0].bias[keep]))
    by_hand = network[4](F.relu(F.linear(hidden, network[2].weight[:, keep], network[2].bias)))
    assert found[0].values[0] == pytest.approx(by_hand.sum().item(), rel=1e-5)


def test_branches_that_compete_fall_together_and_have_one_curve():
    torch.manual_seed(0)
    network, batch = VisionTransformer(dim=8, depth=2, hidden=16, num_heads=2).eval(), torch.randn(2, 1, 16, 16)
    ends = [f"blocks.{index}.{name}" for index in range(2) for name in ("attention.proj", "fc2")]
    fallen = []

    def measure():
        fallen.append(sum(not network.get_submodule(name).weight.any() for name in ends))
        return float(fallen[-1])

    (curve,) = sweep(
        network,
        ends,
        couple(capture_network(network, (batch,))),
        criterion=Magnitude(),
        structure=Layer(),
        sparsities=(0.25, 0.75),
        measure=measure,
    )
    assert fallen == [1, 3]
    assert (curve.pool, curve.size) == (", ".join(f"{name}.weight" for name in ends), 4)


@pytest.mark.parametrize("structure", [Weight(), Channel(shrink="never")], ids=["layers", "groups"])
def test_the_network_is_as_it_was_even_after_an_error(network, structure):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    curves(network, structure, lambda: 0.0)
    with pytest.raises(ZeroDivisionError):
        curves(network, structure, lambda: 1 / 0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_criterion_that_sees_data_is_refused(network):
    with pytest.raises(ValueError, match="'MeanActivation' needs to see data"):
        curves(network, Weight(), lambda: 0.0, criterion=MeanActivation())


def test_losses_never_fall_and_a_better_metric_is_no_loss():
    curve = SensitivityCurve(pool="a", size=4, values=(0.95, 0.7, 0.8))
    table = Sensitivity(metric="acc", mode="max", base=0.9, sparsities=(0.2, 0.4, 0.6), layers=(curve,), groups=())
    assert table.losses(curve) == pytest.approx([0.0, 0.2, 0.2])


def test_a_table_comes_back_from_its_file(tmp_path):
    curve = SensitivityCurve(pool="a", size=4, values=(0.5, 0.25))
    table = Sensitivity(metric="acc", mode="max", base=0.75, sparsities=(0.2, 0.4), layers=(curve,), groups=(curve,))
    (tmp_path / "analyze.json").write_text(json.dumps({"sensitivity": table.to_dict()}))
    assert read_sensitivity(tmp_path / "analyze.json") == table


def test_a_curve_of_another_length_is_refused(tmp_path):
    content = {"metric": "acc", "mode": "max", "base": 1.0, "sparsities": [0.5], "groups": []}
    content["layers"] = [{"pool": "a", "size": 4, "values": [0.5, 0.4]}]
    (tmp_path / "analyze.json").write_text(json.dumps({"sensitivity": content}))
    with pytest.raises(ArtefactError, match="2 values for 1 sparsities"):
        read_sensitivity(tmp_path / "analyze.json")


@pytest.mark.parametrize("sparsities", [(), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.6, 0.2)])
def test_sparsities_must_ascend_between_zero_and_one(sparsities):
    with pytest.raises(ValueError, match="ascend"):
        check_sparsities(sparsities)
