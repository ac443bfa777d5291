"""What leaves a network is rounded in whatever container it does."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from lightning_optim.export import calibrate, check_parity, export_onnx
from lightning_optim.surgery.containers import tensors_of


class Named(NamedTuple):
    logits: Tensor
    hidden: Any = None


@dataclass
class Answer:
    logits: Tensor
    hidden: Any = None


@dataclass(frozen=True)
class Frozen:
    logits: Tensor


class Registered:
    def __init__(self, logits):
        self.logits = logits


class OwnDict(dict):
    pass


_pytree.register_pytree_node(Registered, lambda value: ([value.logits], None), lambda parts, _: Registered(*parts))

CONTAINERS = {
    "tuple": lambda x: (x,),
    "nested": lambda x: {"heads": [{"logits": x}], "hidden": (x.relu(),)},
    "named tuple": Named,
    "dataclass": Answer,
    "dataclass of a dict": lambda x: Answer({"a": x, "b": x + 1.0}),
    "dataclass in a list": lambda x: [Answer(x, "text"), Answer(x + 1.0)],
    "frozen": Frozen,
    "ordered": lambda x: OrderedDict(logits=x),
    "own dict": lambda x: OwnDict(logits=x),
    "user dict": lambda x: UserDict(logits=x),
    "registered": Registered,
}


class Net(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.first, self.second, self.wrap = nn.Linear(8, 16), nn.Linear(16, 5), wrap

    def forward(self, x):
        return self.wrap(self.second(self.first(x).relu()))


@pytest.fixture
def batches():
    return [*torch.randn(32, 8, generator=torch.Generator().manual_seed(0)).split(16)]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_outputs_are_rounded_in_any_container_and_in_its_file(kind, batches, tmp_path):
    torch.manual_seed(0)
    plain = Net(lambda x: tensors_of(CONTAINERS[kind](x))).eval()
    net = Net(CONTAINERS[kind]).eval()
    net.load_state_dict(plain.state_dict())
    expected = calibrate(plain, batches).simulated()(batches[0])
    quantized = calibrate(net, batches)
    found = quantized.simulated()(batches[0])
    assert type(found) is type(CONTAINERS[kind](batches[0]))
    assert [*map(torch.equal, tensors_of(found), expected)] == [True] * len(expected)
    assert len(expected[0].unique()) <= 256
    written = quantized.export(tmp_path / "model.onnx", batches=batches)
    assert len(written.parity.outputs) == len(expected)
    assert written.parity.relative_error < 1e-5
    assert check_parity(net, export_onnx(net, (batches[0],), tmp_path / "float.onnx"), batches).relative_error < 1e-5


def test_an_output_that_nobody_can_make_anew_is_refused(batches):
    with pytest.raises(TypeError, match="a SimpleNamespace holds tensors, and nothing tells how to make another one"):
        calibrate(Net(lambda x: SimpleNamespace(logits=x)), batches)


def test_what_is_not_rounded_may_leave_in_any_container(batches):
    net = Net(lambda x: torch.distributions.Normal(x.tanh(), x.exp()))
    assert isinstance(calibrate(net, batches).simulated()(batches[0]), torch.distributions.Normal)
