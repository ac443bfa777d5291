import itertools

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from lightning_optim.cost import Prices
from lightning_optim.cost.curve import Curve
from lightning_optim.cost.prices import Grid, Pool, Product, Width, prices_from_state

A, B = Width(0.0, {"a": 2.0}), Width(3.0, {"b": 1.0})


def test_a_width_counts_fixed_positions_and_those_of_each_pool():
    assert Width(3.0, {"a": 2.0, "b": 0.5}).at({"a": 4, "b": 6}) == 3 + 8 + 3


def test_a_product_multiplies_lengths():
    assert Product("conv", 9.0, (A, B)).at({"a": 4, "b": 2}) == 9 * 8 * 5


def test_a_grid_interpolates_as_scipy_does():
    points = ((2.0, 4.0, 10.0), (4.0, 7.0))
    values = np.random.default_rng(0).random((3, 2))
    grid = Grid("conv", (A, B), points, tuple(values.flatten()))
    reference = RegularGridInterpolator(points, values)
    for a, b in itertools.product(range(1, 6), range(1, 5)):
        assert grid.at({"a": a, "b": b}) == pytest.approx(float(reference([[2.0 * a, 3.0 + b]])[0]))


def test_beyond_its_points_a_grid_goes_on_but_never_below_zero():
    grid = Grid("relu", (Width(0.0, {"a": 1.0}),), ((4.0, 8.0),), (1.0, 3.0))
    assert grid.at({"a": 10}) == 4.0
    assert grid.at({"a": 1}) == 0.0


def test_an_axis_of_one_length_has_one_point():
    grid = Grid("linear", (Width(10.0, {}), Width(0.0, {"a": 1.0})), ((10.0,), (2.0, 4.0)), (1.0, 2.0))
    assert grid.at({"a": 3}) == 1.5


def test_a_grid_with_holes_is_refused():
    with pytest.raises(ValueError, match="do not fill"):
        Grid("conv", (A, B), ((1.0, 2.0), (1.0, 2.0)), (1.0, 2.0, 3.0))


def test_pools_that_are_left_out_are_whole():
    prices = Prices("MACs", {"a": Pool(4), "b": Pool(2)}, (Product("conv", 1.0, (A, B)),))
    assert prices({"a": 1}) == 2 * 5
    assert prices.full == 8 * 5


def test_prices_come_back_from_a_checkpoint(tmp_path):
    terms = (Product("conv", 9.0, (A, B)), Grid("relu", (A,), ((2.0, 8.0),), (0.25, 0.75)), Product("rest", 5.0, ()))
    prices = Prices("seconds", {"a": Pool(4, 3), "b": Pool(2)}, terms, Curve((1.0, 300.0), (2.0, 200.0)))
    torch.save(prices.state_dict(), tmp_path / "prices.pt")
    restored = prices_from_state(torch.load(tmp_path / "prices.pt", weights_only=True))
    assert restored == prices
    assert restored({"a": 3, "b": 1}) == prices({"a": 3, "b": 1})


def test_a_curve_reads_the_sum():
    prices = Prices("seconds", {"a": Pool(4)}, (Product("conv", 1.0, (A,)),), Curve((2.0, 8.0), (3.0, 6.0)))
    assert (prices.total({"a": 2}), prices({"a": 2}), prices.full) == (4.0, 4.0, 6.0)
