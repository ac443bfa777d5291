import itertools

import pytest
import torch
from torch import nn

from lightning_optim import QATFakeQuant
from lightning_optim.cost import MACs, Parameters, WeightBytes
from lightning_optim.quantization import (
    BitLatency,
    BitSensitivity,
    LayerLoss,
    Symmetric,
    Ternary,
    allocate_bits,
    allocate_latency,
    layer_quantizers,
)


def total(table, chosen):
    return sum(row[place] for row, place in zip(table, chosen, strict=True))


def by_brute_force(costs, losses, budget):
    every = itertools.product(*(range(len(row)) for row in costs))
    return min(total(losses, chosen) for chosen in every if total(costs, chosen) <= budget)


def table(*layers, bits=(2, 3, 4)):
    rows = (
        LayerLoss(layer=name, num_weights=size, macs=macs, values=tuple(values)) for name, size, macs, values in layers
    )
    return BitSensitivity(bits=bits, base=0.0, layers=tuple(rows))


@pytest.mark.parametrize("seed", range(10))
def test_no_choice_within_the_seconds_loses_less(seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randint(0, 12, (4, 3), generator=generator).double().tolist()
    losses = [sorted(row, reverse=True) for row in losses]
    seconds = (torch.randint(-9, 9, (4, 3), generator=generator).double() * 1e-4 + 5e-3).tolist()
    found = table(*((str(place), 1, 1, row) for place, row in enumerate(losses)))
    latency = BitLatency(
        bits=(2, 3, 4), base=5e-3, layers={str(place): tuple(row) for place, row in enumerate(seconds)}
    )
    extra = [[round(1e9 * (value - 5e-3)) for value in row] for row in seconds]
    floor = 5e-3 + 1e-9 * total(extra, [row.index(min(row)) for row in extra])
    for budget in (floor + 1e-9, 5e-3 + 2e-4, 8e-3):
        if budget < floor:
            continue
        widths = allocate_latency(found, latency, seconds=budget)
        chosen = [(2, 3, 4).index(widths[str(place)]) for place in range(4)]
        room = round(1e9 * (budget - 5e-3))
        assert total(extra, chosen) <= room
        assert total(losses, chosen) == by_brute_force(extra, losses, room)
    with pytest.raises(ValueError, match="below the floor"):
        allocate_latency(found, latency, seconds=floor - 1e-6)


def test_a_latency_of_other_layers_is_refused():
    latency = BitLatency(bits=(2, 3, 4), base=1.0, layers={"b": (1.0, 1.0, 1.0)})
    with pytest.raises(ValueError, match="same layers and widths"):
        allocate_latency(table(("a", 1, 1, (3.0, 2.0, 1.0))), latency, seconds=2.0)


def test_bits_go_where_they_are_missed():
    found = table(("a", 100, 1, (9.0, 2.0, 0.0)), ("b", 100, 1, (1.0, 0.5, 0.0)))
    assert allocate_bits(found, average_bits=3.0) == {"a": 4, "b": 2}


def test_each_cost_is_an_average_of_its_own():
    found = table(("a", 100, 1, (1.0, 0.5, 0.0)), ("b", 1, 100, (1.0, 0.5, 0.0)))
    assert allocate_bits(found, average_bits=2.1, cost=WeightBytes()) == {"a": 2, "b": 4}
    assert allocate_bits(found, average_bits=2.1, cost=MACs()) == {"a": 4, "b": 2}


def test_a_uniform_width_is_within_its_own_budget():
    found = table(*((name, 10_007, 1, (3.0, 1.0, 1.0)) for name in "abc"))
    assert allocate_bits(found, average_bits=3.0) == {"a": 3, "b": 3, "c": 3}


def test_the_result_is_what_fake_quantization_takes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    callback = QATFakeQuant(layers=layer_quantizers({"0": 5, "2": 2}, [Ternary(), Symmetric(bits=5)]))
    callback.calibrate(net, [torch.randn(16, 4)])
    rows = [line.split() for line in callback.describe().splitlines()]
    assert {row[0]: row[3] for row in rows if "linear" in row} == {"0:linear": "w5", "2:linear": "w2"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"average_bits": 1.9}, "below the smallest width of the table, 2"),
        ({"average_bits": float("nan")}, "below the smallest width"),
        ({"average_bits": 3.0, "most_states": 0}, "most_states must be at least 1"),
    ],
)
def test_what_cannot_be_met_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        allocate_bits(table(("a", 1, 1, (1.0, 0.5, 0.0))), **settings)


def test_a_cost_that_has_no_price_for_bits_is_refused():
    with pytest.raises(TypeError, match=r"by WeightBytes\(\) or MACs\(\), got Parameters\(\): choose one"):
        allocate_bits(table(("a", 1, 1, (1.0, 0.5, 0.0))), average_bits=3.0, cost=Parameters())


@pytest.mark.parametrize("cost", [WeightBytes(), MACs()])
@pytest.mark.parametrize("average", [2.0, 2.5, 3.3])
def test_no_widths_within_the_average_lose_less(cost, average):
    generator = torch.Generator().manual_seed(0)
    units = torch.randint(1, 50, (5, 2), generator=generator).tolist()
    losses = torch.randint(0, 12, (5, 3), generator=generator).double().sort(1, descending=True).values.tolist()
    found = table(*((str(place), *units[place], row) for place, row in enumerate(losses)))
    widths = allocate_bits(found, average_bits=average, cost=cost)
    charged = [size if cost == WeightBytes() else macs for size, macs in units]
    costs = [[each * bits for bits in (2, 3, 4)] for each in charged]
    chosen = [(2, 3, 4).index(widths[str(place)]) for place in range(5)]
    assert total(costs, chosen) <= average * sum(charged)
    assert total(losses, chosen) == by_brute_force(costs, losses, average * sum(charged))


def test_a_width_without_a_quantizer_is_refused():
    with pytest.raises(ValueError, match=r"no quantizer has a width of 3: weight_quantizers have \[2, 4\]"):
        layer_quantizers({"a": 3}, [Symmetric(bits=2), Symmetric(bits=4)])
    with pytest.raises(ValueError, match="different widths"):
        layer_quantizers({"a": 2}, [Symmetric(bits=2), Ternary()])
