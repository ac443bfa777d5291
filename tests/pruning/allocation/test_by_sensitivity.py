import itertools
import json

import numpy as np
import pytest
import torch

from lightning_optim.errors import ArtefactError
from lightning_optim.pruning import BySensitivity, Sensitivity, SensitivityCurve
from lightning_optim.pruning.allocation.by_sensitivity import equal_losses

SPARSITIES = (0.25, 0.5, 0.75)
CURVES = {"a": (0.9, 0.9, 0.89), "b": (0.85, 0.6, 0.3), "c": (0.91, 0.88, 0.5)}


def table(size=40):
    curves = tuple(SensitivityCurve(pool=pool, size=size, values=values) for pool, values in CURVES.items())
    return Sensitivity(metric="acc", mode="max", base=0.9, sparsities=SPARSITIES, layers=curves, groups=())


@pytest.fixture
def allocation(tmp_path):
    (tmp_path / "analyze.json").write_text(json.dumps({"sensitivity": table().to_dict()}))
    return BySensitivity(table=str(tmp_path / "analyze.json"))


def scores():
    generator = torch.Generator().manual_seed(0)
    return {pool: torch.rand(40, generator=generator) for pool in CURVES}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.5, 0.8, 0.99])
def test_exactly_as_many_go_as_are_asked_for(allocation, sparsity):
    masks = allocation(scores(), sparsity)
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * 120)


def test_the_less_sensitive_lose_more(allocation):
    gone = {pool: int((~mask).sum()) for pool, mask in allocation(scores(), 0.5).items()}
    assert gone["a"] > gone["c"] > gone["b"]


def test_no_other_split_has_a_smaller_largest_loss():
    curves, points = table().layers, [0.0, *SPARSITIES, 1.0]

    def loss(curve, drop):
        return np.interp(drop / curve.size, points, [0.0, *table().losses(curve), 0.6])

    drops = equal_losses(table(), curves, 60, [0, 0, 0])
    found = max(loss(curve, drop) for curve, drop in zip(curves, drops, strict=True))
    splits = (split for split in itertools.product(range(41), repeat=3) if sum(split) == 60)
    best = min(max(loss(curve, drop) for curve, drop in zip(curves, split, strict=True)) for split in splits)
    assert found <= best + 0.02  # one entry more or less


def test_what_has_gone_is_counted_and_does_not_come_back(allocation):
    values = scores()
    values["b"][:30] = -torch.inf
    masks = allocation(values, 0.5)
    assert not masks["b"][:30].any()
    assert sum(int((~mask).sum()) for mask in masks.values()) == 60


def test_a_metric_that_is_better_when_low_is_read_the_other_way():
    curves = (SensitivityCurve(pool="a", size=4, values=(0.3,)), SensitivityCurve(pool="b", size=4, values=(0.9,)))
    low = Sensitivity(metric="loss", mode="min", base=0.2, sparsities=(0.5,), layers=curves, groups=())
    drops = equal_losses(low, curves, 4, [0, 0])
    assert drops[0] > drops[1]
    assert low.losses(curves[0]) == pytest.approx([0.1])


def test_where_nothing_hurts_all_lose_alike():
    curves = tuple(SensitivityCurve(pool=pool, size=40, values=(0.9, 0.9, 0.9)) for pool in "ab")
    flat = Sensitivity(metric="acc", mode="max", base=0.9, sparsities=SPARSITIES, layers=curves, groups=())
    assert equal_losses(flat, curves, 40, [0, 0]) == [20, 20]


def test_a_pool_that_was_not_measured_is_refused(allocation):
    with pytest.raises(ValueError, match="no 'd' with 40 entries"):
        allocation({"d": torch.rand(40)}, 0.5)
    with pytest.raises(ValueError, match="no 'a' with 7 entries"):
        allocation({"a": torch.rand(7)}, 0.5)


@pytest.mark.parametrize("content", [None, "no json", "{}", '{"sensitivity": {"metric": "acc"}}'])
def test_a_file_without_a_table_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "analyze.json").write_text(content)
    with pytest.raises(ArtefactError, match="lightning-optim analyze"):
        BySensitivity(table=str(tmp_path / "analyze.json"))
