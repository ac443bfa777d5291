import pytest
import torch
from torch import nn

from lightning_optim.surgery.passes import is_repeating, repeating
from lightning_optim.surgery.tap import Taps


def test_a_recorder_that_was_open_before_sees_nothing_of_a_step_that_is_repeated():
    layer, before, inside = nn.Linear(2, 1), Taps(), Taps()
    for taps in (before, inside):
        taps.attach({"layer": layer})
    before.open()
    layer(torch.ones(1, 2))
    with repeating():
        inside.open()
        layer(torch.zeros(1, 2))
        (call,) = inside.take()["layer"]
    layer(torch.ones(1, 2))
    assert [float(each.args[0].sum()) for each in before.take()["layer"]] == [2.0, 2.0]
    assert float(call.args[0].sum()) == 0.0


def test_an_exception_ends_it():
    with pytest.raises(RuntimeError), repeating():
        raise RuntimeError
    assert not is_repeating()
