"""A batch that makes a range useless is found, told, and does not count for it."""

import subprocess
import sys
import warnings

import pytest
import torch

from lightning_optim.quantization import Affine, MinMax, MovingAverage, Percentile
from lightning_optim.quantization.simulation.range_watch import Finding, messages
from lightning_optim.quantization.simulation.ranges import Ranges

INF, NAN = float("inf"), float("nan")
RANK = """
import sys, torch
from torch import distributed
from lightning_optim.quantization import Affine, MinMax
from lightning_optim.quantization.simulation.ranges import Ranges
from lightning_optim.quantization.simulation.ranges_of_ranks import merge_ranges
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
ranges = Ranges(Affine(), MinMax())
ranges.watch.sums = frozenset({"new:add", "old:add"})
seen = [{"old:add": [-1.0, 2.0]}, {"old:add": [-3.0, 1.0], "new:add": [-4.0, 4.0]}]
if rank:
    seen[1] = {"old:add": [-1e9, 1.0], "new:add": [-float("inf"), 4.0]}
found = []
for batch in seen:
    for key, values in batch.items():
        ranges.observe(key, torch.tensor(values))
    news = ranges.masked_keys or None
    merge_ranges(ranges, torch.device("cpu"), news, lambda told: ranges.reset(frozenset().union(*told)))
    found += sorted({each.key for each in ranges.findings() if each.is_masked})
torch.save((found, ranges.keys, ranges.range_of("old:add")), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def observe(ranges, **batch):
    for key, values in batch.items():
        ranges.observe(key, torch.tensor(values))
    ranges.reset(ranges.masked_keys)
    ranges.register(ranges.new_keys)
    ranges.merge(ranges.message())
    return ranges.findings()


@pytest.mark.parametrize("sentinel", [-1e4, -1e9, torch.finfo(torch.float32).min, -INF, INF])
@pytest.mark.parametrize("observer", [MinMax(), MovingAverage(), Percentile(percentile=100.0)])
def test_a_sum_that_comes_to_hold_sentinels_is_found_and_keeps_its_range(sentinel, observer):
    ranges = Ranges(Affine(), observer)
    ranges.watch.sums = frozenset({"add"})
    assert observe(ranges, add=[-3.0, 5.0]) == []
    before = ranges.range_of("add")
    (finding,) = observe(ranges, add=[-3.0, sentinel, 5.0])
    assert finding.is_masked
    assert ranges.range_of("add") == before


def test_a_sum_that_holds_sentinels_from_the_start_gets_no_range():
    ranges = Ranges(Affine(), MinMax())
    ranges.watch.sums = frozenset({"add"})
    (finding,) = observe(ranges, add=[-3.0, -1e9, 5.0])
    assert (finding.key, finding.is_masked, ranges.keys) == ("add", True, ())


def test_one_value_that_takes_nearly_all_of_a_range_is_told_and_counts():
    ranges = Ranges(Affine(), MinMax())
    for batch in ([-1.0, 0.5, 100.0], [-1.0, 0.5, 2000.0]):
        (finding,) = observe(ranges, linear=batch)
        assert "one value takes nearly all of the range of linear, [-1, " in str(finding)
    assert ranges.range_of("linear") == (-1.0, 2000.0)
    assert observe(ranges, linear=[-1.0, 0.5, 90.0]) == []


def test_ranges_that_are_wide_or_grow_slowly_are_not_told():
    ranges = Ranges(Affine(), MinMax())
    for size in (1.0, 10.0, 100.0, 1000.0):
        assert observe(ranges, linear=(size * torch.linspace(-1, 1, 100)).tolist()) == []


@pytest.mark.parametrize(("value", "name"), [(NAN, "NaN"), (INF, "infinities"), (-INF, "infinities")])
def test_what_is_not_finite_is_named_for_what_it_is(value, name):
    ranges = Ranges(Affine(), MinMax())
    observe(ranges, linear=[-1.0, 1.0])
    (finding,) = observe(ranges, linear=[-1.0, value])
    assert str(finding) == f"linear holds {name}, which no range covers: its range stays as it was before this batch"
    assert ranges.range_of("linear") == (-1.0, 1.0)


def test_a_sum_of_nan_is_no_mask():
    ranges = Ranges(Affine(), MinMax())
    ranges.watch.sums = frozenset({"add"})
    observe(ranges, add=[-1.0, 1.0])
    (finding,) = observe(ranges, add=[-1.0, NAN, -INF])
    assert not finding.is_masked
    assert "holds NaN" in str(finding)


def test_the_first_of_what_is_not_finite_speaks_for_those_behind_it():
    found = [
        Finding("b:linear", 0.0, NAN, 2.0),
        Finding("a:linear", 0.0, 1.0, 1.0),
        Finding("a:linear<0", 0.0, INF, 1.0),
    ]
    (text,) = messages(found, ["a:linear", "b:linear"]).values()
    assert text.startswith("a:linear<0 holds infinities")
    assert text.endswith("(2 others behind it hold such values too)")


def test_ranks_that_differ_in_their_masks_agree_on_what_stays_in_float(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=100) for process in running] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == (["new:add"] * rank + ["old:add"], ("old:add", "new:add"), (-1.0, 2.0))


def test_nothing_is_told_of_ordinary_batches():
    ranges = Ranges(Affine(), MovingAverage())
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            assert observe(ranges, add=torch.randn(1000).tolist(), relu=torch.randn(1000).relu().tolist()) == []
