import pytest
import torch
from torch import nn

import lightning_optim.cost.operator_times
from lightning_optim.cost.axis_widths import AxisWidths
from lightning_optim.cost.operator_times import share_in_vectors, tabulated, vector_step
from lightning_optim.cost.operators import timed_operators
from lightning_optim.graph import capture_network, couple


@pytest.mark.parametrize(("size", "share", "count"), [(64, 0.4, 32), (64, 0.01, 16), (20, 0.4, 8), (20, 0.01, 1)])
def test_sizes_that_are_tried_are_whole_vectors_where_there_are_two(size, share, count):
    assert share_in_vectors(size, share) == count
    assert count % vector_step(size) == 0


def test_an_operator_is_timed_at_every_combination_and_equal_calls_once(monkeypatch):
    calls = []
    monkeypatch.setattr(lightning_optim.cost.operator_times, "time_call", lambda call: calls.append(call) or 2.0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(4, 2))
    coupling = couple(capture_network(net, (torch.randn(2, 3),)))
    widths = AxisWidths(coupling, {group.name: group for group in coupling.groups})
    known = {}
    tables = [tabulated(operator, widths.sizes, 2, known) for operator in timed_operators(coupling, widths, 0.5)]
    assert [table.points for table in tables] == [((4.0, 8.0),), ((4.0, 8.0), (2.0, 4.0)), ((2.0, 4.0),)]
    assert [table.values for table in tables] == [(2.0,) * 2, (2.0,) * 4, (2.0,) * 2]
    assert len(calls) == len(known) == 8
    again = timed_operators(coupling, widths, 0.5)
    assert [tabulated(operator, widths.sizes, 2, known) for operator in again] == tables
    assert len(calls) == 8
