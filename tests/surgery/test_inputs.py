from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch

from lightning_optim.surgery import Inputs
from lightning_optim.surgery.inputs import call_network

ONE, TWO = torch.ones(2), torch.zeros(2)
Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        (ONE, (ONE,), {}),
        ((ONE, TWO), (ONE, TWO), {}),
        ([ONE, TWO], (ONE, TWO), {}),
        (Pair(ONE, TWO), (ONE, TWO), {}),
        ({"x": ONE}, (), {"x": ONE}),
        (OrderedDict(x=ONE), (), {"x": ONE}),
        (UserDict(x=ONE), (), {"x": ONE}),
        (Inputs((ONE,), {"y": TWO}), (ONE,), {"y": TWO}),
        ("text", ("text",), {}),
        (None, (None,), {}),
    ],
)
def test_what_a_batch_stands_for(batch, args, kwargs):
    found = Inputs.of(batch)
    assert (found.args, found.kwargs) == (args, kwargs)
    assert call_network(lambda *a, **k: (a, k), batch) == (args, kwargs)
