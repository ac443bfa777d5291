"""Every operator that a rule knows has one kind."""

import torch

from lightning_optim.graph import norm_shapes, operators
from lightning_optim.graph.operators import FREE, NORMS, PRODUCTS, OperatorKind, kind_of, operator_name
from lightning_optim.graph.rules.base import all_rules, rule


def unclassified():
    return sorted(name for name in all_rules() if kind_of(name) is None)


def test_every_operator_with_a_rule_has_a_kind():
    assert unclassified() == []


def test_a_rule_for_an_operator_without_a_kind_is_noticed(monkeypatch):
    monkeypatch.setattr("lightning_optim.graph.rules.base._RULES", dict(all_rules()))
    all_rules.cache_clear()
    try:
        rule("invented")(lambda call: [])
        assert unclassified() == ["invented"]
    finally:
        all_rules.cache_clear()


def test_no_operator_stands_under_two_kinds():
    names = [name for listed in operators._NAMES.values() for name in listed.split()]
    assert len(names) == len(set(names))
    assert {kind_of(name) for name in names} == set(OperatorKind)


def test_norms_that_are_answered_by_their_shape_are_norms():
    assert {kind_of(function.__name__) for function in norm_shapes._NORMS} <= NORMS


def test_what_is_free_is_no_product():
    assert not {kind_of(name) for name in FREE} & PRODUCTS


def test_a_foreign_function_keeps_its_name():
    assert operator_name(torch.ops.aten.conv2d.default) == "conv2d"
    assert operator_name(len) == "len"
