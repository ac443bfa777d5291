"""One walk finds and changes tensors in containers of every kind."""

from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from lightning_optim.surgery.containers import as_plain, find_tensors, map_tensors, name_of, tensors_of

X = torch.tensor([1.0, 2.0])
Old = namedtuple("Old", ["x", "rest"])


class New(NamedTuple):
    x: Tensor
    rest: Any = None


@dataclass
class Answer:
    x: Tensor
    rest: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: Tensor
    rest: Any = field(default=None, init=False)

    def __post_init__(self):
        assert self.x is X  # not run when another one is made of it


class OwnDict(dict):
    pass


@dataclass
class ModelOutput(OrderedDict):
    """Fields that are entries as well, as transformers has them."""

    x: Tensor = None
    rest: Any = None

    def __post_init__(self):
        for name in ("x", "rest"):
            if getattr(self, name) is not None:
                OrderedDict.__setitem__(self, name, getattr(self, name))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


class Registered:
    def __init__(self, x, note):
        self.x, self.note = x, note


_pytree.register_pytree_node(
    Registered, lambda value: ([value.x], value.note), lambda parts, note: Registered(*parts, note)
)

CONTAINERS = {
    "tensor": (X, ""),
    "tuple": ((X, None), "0"),
    "list": ([3, X], "1"),
    "nested": ({"a": [{"b": (X,)}]}, "a.0.b.0"),
    "named tuple": (New(X), "x"),
    "namedtuple": (Old(X, 1), "x"),
    "dataclass": (Answer(X, "text"), "x"),
    "frozen": (Frozen(x=X), "x"),
    "in a dataclass": (Answer({"y": X}), "x.y"),
    "own dict": (OwnDict(x=X), "x"),
    "model output": (ModelOutput(x=X), "x"),
    "ordered": (OrderedDict(x=X), "x"),
    "default": (defaultdict(list, x=[X]), "x.0"),
    "deque": (deque([X]), "0"),
    "user dict": (UserDict(x=X), "x"),
    "user list": (UserList([X]), "0"),
    "registered": (Registered(X, "note"), "0"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_tensor_is_found_and_changed_in_a_container(kind):
    value, name = CONTAINERS[kind]
    ((path, tensor),) = find_tensors(value)
    assert name_of(path) == name
    assert tensor is X
    changed = map_tensors(lambda each: 2.0 * each, value)
    assert type(changed) is type(value)
    assert torch.equal(tensors_of(changed)[0], 2.0 * X)
    assert torch.equal(tensors_of(value)[0], X)
    assert map_tensors(lambda each: each, value) is value


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_plain_container_holds_the_same_tensors_in_the_same_order(kind):
    plain = as_plain(CONTAINERS[kind][0])
    assert [id(leaf) for leaf in _pytree.tree_leaves(plain) if isinstance(leaf, Tensor)] == [id(X)]


def test_a_model_output_changes_its_fields_and_its_entries():
    changed = map_tensors(lambda each: 2.0 * each, ModelOutput(x=X))
    assert torch.equal(changed.x, 2.0 * X)
    assert torch.equal(changed["x"], 2.0 * X)


@pytest.mark.parametrize("value", [SimpleNamespace(x=X), MappingProxyType({"x": X}), torch.distributions.Normal(X, X)])
def test_what_cannot_be_made_anew_is_refused_only_if_it_changes(value):
    assert torch.equal(tensors_of(value)[0], X)
    assert map_tensors(lambda each: each, value) is value
    with pytest.raises(
        TypeError, match=f"a {type(value).__name__} holds tensors, and nothing tells how to make another"
    ):
        map_tensors(lambda each: 2.0 * each, value)


def test_what_holds_no_tensor_stays():
    for value in (None, 3, "text", [], {}, Answer(None), torch.Size([2]), object()):
        assert map_tensors(lambda each: 2.0 * each, value) is value
        assert tensors_of(value) == []
