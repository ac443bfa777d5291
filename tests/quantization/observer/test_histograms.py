"""Observers that count values: on many batches, on several processes, and from a checkpoint."""

import copy

import pytest
import torch

from lightning_optim.quantization import Affine, Entropy, MeanSquaredError, Percentile, Symmetric
from lightning_optim.quantization.simulation.ranges import Ranges

OBSERVERS = [Percentile(percentile=99.0), MeanSquaredError(num_steps=20), Entropy(stride=64)]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batches(count=3):
    """Tensors of two activations whose spans grow and shrink."""
    return [{"a": torch.randn(2000) * 4.0**step, "b": torch.rand(500) * 2.0**-step} for step in range(count)]


def observed(observer, seen, quantizer=None):
    ranges = Ranges(quantizer or Affine(bits=4), observer)
    for batch in seen:
        for key, tensor in batch.items():
            ranges.observe(key, tensor)
        ranges.register(ranges.new_keys)
        ranges.merge(ranges.message())
    return ranges


def on_processes(observer, seen, num_processes):
    """What ``merge_ranges`` does, with sums and maxima in place of messages."""
    processes = [Ranges(Affine(bits=4), observer) for _ in range(num_processes)]
    for batch in seen:
        for key, tensor in batch.items():
            for process, part in zip(processes, tensor.chunk(num_processes), strict=True):
                process.observe(key, part)
        for process in processes:
            process.register(tuple(sorted(batch)))
        union = torch.stack([process.message() for process in processes]).amax(0)
        sent = [sent_counts(copy.deepcopy(process), union) for process in processes]
        total = torch.stack(sent).sum(0)
        for process in processes:
            process.merge(union.clone(), lambda _, total=total: total)
    return processes


def sent_counts(process, union):
    sent = []
    process.merge(union.clone(), lambda counts: sent.append(counts) or counts)
    return sent[0]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_processes_with_different_ranges_equal_one_on_the_union(observer):
    seen = batches()
    for batch in seen:
        batch["a"][:1000] *= 30.0
    alone = observed(observer, seen)
    for process in on_processes(observer, seen, 2):
        for key in ("a", "b"):
            assert process.range_of(key) == alone.range_of(key)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("quantizer", [Affine(bits=4), Symmetric(bits=4, granularity="tensor")])
def test_batches_count_as_if_they_were_one(observer, quantizer):
    seen = batches()
    whole = {key: torch.cat([batch[key] for batch in seen]) for key in seen[0]}
    several, one = observed(observer, seen, quantizer), observed(observer, [whole], quantizer)
    assert [several.range_of(key) for key in "ab"] == [one.range_of(key) for key in "ab"]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_outliers_are_clipped_and_the_range_stays_within_what_was_seen(observer):
    x = torch.cat([torch.rand(20_000), torch.tensor([40.0])])
    low, high = observed(observer, [{"a": x}]).range_of("a")
    assert low >= 0.0
    assert 0.5 < high < 5.0
    low, high = observed(observer, [{"a": torch.full((10,), 2.5)}]).range_of("a")
    assert high == 2.5


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_state_goes_on_as_if_it_had_not_been_saved(observer):
    first, *rest = batches()
    through = observed(observer, [first])
    twin = Ranges(Affine(bits=4), observer)
    twin.load_state_dict(through.state_dict())
    for ranges in (twin, through):
        for batch in rest:
            for key, tensor in batch.items():
                ranges.observe(key, tensor)
            ranges.merge(ranges.message())
    assert all(torch.equal(a, b) for a, b in zip(twin.qparams("a", CPU), through.qparams("a", CPU), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_counts_for_nothing(bad):
    good = torch.randn(100)
    clean = observed(Percentile(percentile=90.0), [{"a": good}])
    mixed = observed(Percentile(percentile=90.0), [{"a": good}, {"a": torch.tensor([bad, 1e9])}])
    assert clean.range_of("a") == mixed.range_of("a")


def test_calls_within_a_batch_add_up():
    ranges = Ranges(Affine(), Percentile(percentile=50.0))
    for tensor in (parts := (torch.rand(1000), torch.rand(1000) * 100.0)):
        ranges.observe("a", tensor)
    ranges.register(ranges.new_keys)
    ranges.merge(ranges.message())
    assert ranges.range_of("a") == observed(Percentile(percentile=50.0), [{"a": torch.cat(parts)}]).range_of("a")


def test_the_zeros_of_a_relu_do_not_narrow_the_range():
    x = torch.randn(20_000).relu()
    for observer in OBSERVERS:
        assert observed(observer, [{"a": x}], Affine(bits=3)).range_of("a")[1] > 1.0


def test_decay_forgets():
    seen = [{"a": torch.full((100,), 8.0)}] + [{"a": torch.full((100,), 1.0)}] * 10
    assert observed(Percentile(percentile=90.0, decay=0.5), seen).range_of("a")[1] < 1.01
    assert observed(Percentile(percentile=90.0), seen).range_of("a")[1] == 8.0


def test_no_values_are_out_of_range_of_all():
    x = torch.randn(1000)
    assert observed(Percentile(percentile=100.0), [{"a": x}]).range_of("a") == (x.min(), x.max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Percentile(percentile=0.0), r"percentile must be in \(0, 100\]"),
        (lambda: Percentile(decay=0.0), r"decay must be in \(0, 1\]"),
        (lambda: MeanSquaredError(num_steps=0), "num_steps must be at least 1"),
        (lambda: Entropy(stride=0), "stride must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
