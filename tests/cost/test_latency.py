import copy
import json
from dataclasses import dataclass, replace
from typing import final

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lightning_optim.cost.operator_times
from lightning_optim.cost import Eager, Engine, Latency, Subject, count_macs
from lightning_optim.cost.curve import Curve
from lightning_optim.cost.timing import time_call
from lightning_optim.demo import ResidualNet
from lightning_optim.errors import ArtefactError
from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.coupling import keep_channels
from lightning_optim.pruning import Budget
from lightning_optim.surgery import Inputs, apply_cut


@final
@dataclass(frozen=True)
class ByMacs(Engine):
    """A machine that takes a nanosecond for a multiply-accumulate and a millisecond for a call."""

    def __call__(self, network, args, kwargs):
        return 1e-3 + 1e-9 * count_macs(network, args, kwargs)


@final
@dataclass(frozen=True)
class Bent(Engine):
    """A machine that does large networks faster than their parts: no factor of the parts fits it."""

    def __call__(self, network, args, kwargs):
        return 1e-3 * (1e-6 * count_macs(network, args, kwargs)) ** 0.6


def nanosecond_each(call, rounds=11):
    """A clock that goes by the work done, not by what else the machine does."""
    with FlopCounterMode(display=False) as counter:
        call()
    return 1e-9 * counter.get_total_flops() / 2


@pytest.fixture(autouse=True)
def steady_clock(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setattr(lightning_optim.cost.operator_times, "time_call", nanosecond_each)


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    network, batch = ResidualNet(widths=(64, 128)).eval(), torch.randn(2, 1, 28, 28)
    coupling = couple(capture_network(network, (batch,)))
    return network, coupling, {group.name: group for group in coupling.groups}, (batch,)


def cut(network, pools, channels):
    small = copy.deepcopy(network)
    apply_cut(small, keep_channels((group, torch.arange(channels[name])) for name, group in pools.items()))
    return small


@pytest.mark.slow
def test_the_prediction_is_near_the_machines_time_at_sizes_that_were_not_tried(subject):
    network, coupling, pools, (batch,) = subject
    prices = Latency().prices(Subject(network, coupling, pools, (batch,)))
    channels = dict(zip(pools, (48, 32, 80, 96), strict=True))
    measured = Eager()(cut(network, pools, channels), (batch[:1],), {})
    assert prices(channels) == pytest.approx(measured, rel=0.3)  # 0.05 on a quiet machine
    assert prices(channels) < 0.7 * prices.full


def test_the_prediction_is_the_engines_time_at_sizes_that_were_not_tried(subject):
    network, coupling, pools, (batch,) = subject
    engine = ByMacs()
    prices = Latency(engine=engine, batch_size=3).prices(Subject(network, coupling, pools, (batch,)))
    rows = batch[:1].repeat(3, 1, 1, 1)
    assert prices.full == pytest.approx(engine(network, (rows,), {}), rel=1e-3)
    channels = dict(zip(pools, (40, 32, 72, 104), strict=True))
    assert prices(channels) == pytest.approx(engine(cut(network, pools, channels), (rows,), {}), rel=1e-2)


def test_a_network_as_it_is_takes_the_engines_time_for_a_batch(subject):
    network, _, _, (batch,) = subject
    copied = copy.deepcopy(network).train()
    before = copy.deepcopy(copied.state_dict())
    measured = Latency(engine=ByMacs(), batch_size=3).measure(copied, Inputs.of(batch))
    assert measured == ByMacs()(network, (batch[:1].repeat(3, 1, 1, 1),), {})
    assert copied.training
    assert all(torch.equal(before[name], tensor) for name, tensor in copied.state_dict().items())


@pytest.mark.slow
def test_a_network_as_it_is_takes_the_time_of_a_call(subject):
    network, _, _, (batch,) = subject
    assert Latency().measure(network, Inputs.of(batch)) == pytest.approx(time_call(lambda: network(batch[:1])), rel=0.5)


def test_a_curve_takes_in_what_the_parts_do_not_show(subject):
    network, coupling, pools, (batch,) = subject
    engine = Bent()
    prices = Latency(engine=engine).prices(Subject(network, coupling, pools, (batch,)))
    bare = replace(prices, curve=Curve())
    wrong = {"curve": [], "bare": []}
    for widths in ((48, 48, 96, 96), (32, 48, 64, 112), (64, 32, 128, 64), (48, 16, 64, 32), (16, 64, 32, 128)):
        channels = dict(zip(pools, widths, strict=True))
        measured = engine(cut(network, pools, channels), (batch[:1],), {})
        wrong["curve"].append(abs(prices(channels) / measured - 1))
        wrong["bare"].append(abs(bare(channels) / measured - 1))
    assert max(wrong["curve"]) < 0.06  # far below what was measured, the parts alone are wrong by 0.1
    assert max(wrong["bare"]) > 0.09


def test_what_a_budget_would_choose_is_measured_too(subject):
    network, coupling, pools, inputs = subject
    asked = []

    @final
    @dataclass(frozen=True)
    class Asked(Engine):
        def __call__(self, network, args, kwargs):
            asked.append(count_macs(network, args, kwargs))
            return 1e-9 * asked[-1]

    Latency(engine=Asked()).prices(Subject(network, coupling, pools, inputs))
    shares = [count / asked[0] for count in asked]
    assert len(shares) == 8
    assert shares[5:] == pytest.approx([0.7, 0.5, 0.4], abs=0.08)  # of steps of 16 channels


@final
@dataclass(frozen=True)
class Odd(Engine):
    """A machine that takes half as long again where the first layer keeps at most half of its channels."""

    def __call__(self, network, args, kwargs):
        return 1e-9 * count_macs(network, args, kwargs) * (1.5 if len(network.stem.weight) <= 32 else 1.0)


def chooser(prices):
    """A budget of half of the time, where the first layer matters least."""
    scores = {pool: torch.linspace(0.5, 1.5, pool_.size) for pool, pool_ in prices.pools.items()}
    scores[next(iter(scores))] = torch.linspace(0.999, 1.0, 64) ** 400
    masks = Budget().start(prices, multiple=16, highest=0.5)(scores, 0.5)
    return {pool: int(mask.sum()) for pool, mask in masks.items()}


def test_what_the_budget_at_hand_chooses_takes_what_is_predicted(subject):
    network, coupling, pools, inputs = subject
    wrong, within = {}, {}
    for choose in (None, chooser):
        prices = Latency(engine=Odd()).prices(Subject(network, coupling, pools, inputs, choose=choose))
        channels = chooser(prices)
        measured = Odd()(cut(network, pools, channels), (inputs[0][:1],), {})
        wrong[choose], within[choose] = abs(prices(channels) / measured - 1), measured / prices.full
    assert wrong[chooser] < 0.03
    assert within[chooser] < 0.5 * 1.03
    assert wrong[None] > 0.05  # what this test is about


def test_a_choice_that_no_price_allows_leaves_the_prices_as_they_are(subject):
    network, coupling, pools, inputs = subject
    plain = Latency(engine=Odd()).prices(Subject(network, coupling, pools, inputs))
    assert Latency(engine=Odd()).prices(Subject(network, coupling, pools, inputs, choose=lambda prices: None)) == plain


def test_a_table_on_disk_is_written_once_and_taken_instead(subject, tmp_path):
    network, coupling, pools, inputs = subject
    cost = Latency(engine=ByMacs(), points=2, table=str(tmp_path / "tables" / "latency.json"))
    first = cost.prices(Subject(network, coupling, pools, inputs))
    assert cost.prices(Subject(network, coupling, pools, inputs)) == first
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["latency.json"]


def test_a_table_serves_the_same_network_with_fewer_channels(subject, tmp_path):
    network, coupling, pools, inputs = subject
    cost = Latency(engine=ByMacs(), points=2, table=str(tmp_path / "latency.json"))
    first = cost.prices(Subject(network, coupling, pools, inputs))
    small = cut(network, pools, dict.fromkeys(pools, 32))
    narrow = couple(capture_network(small, inputs))
    second = cost.prices(Subject(small, narrow, {group.name: group for group in narrow.groups}, inputs))
    assert second.sizes == dict.fromkeys(pools, 32)
    assert second.full == first(second.sizes)


@pytest.mark.parametrize("content", ["no json", json.dumps({"unit": "seconds"}), "[]"])
def test_a_file_that_is_no_table_is_refused(subject, tmp_path, content):
    network, coupling, pools, inputs = subject
    (tmp_path / "latency.json").write_text(content)
    with pytest.raises(ArtefactError, match="no latency table"):
        Latency(table=str(tmp_path / "latency.json")).prices(Subject(network, coupling, pools, inputs))


def test_a_table_of_another_network_is_refused(subject, tmp_path):
    network, coupling, pools, inputs = subject
    cost = Latency(engine=ByMacs(), points=2, table=str(tmp_path / "latency.json"))
    cost.prices(Subject(network, coupling, dict(list(pools.items())[:2]), inputs))
    with pytest.raises(ArtefactError, match="another network"):
        cost.prices(Subject(network, coupling, pools, inputs))


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"points": 1}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="at least"):
        Latency(**values)
