import math

import pytest
import torch
from scipy.stats import entropy as kl_divergence

from lightning_optim.quantization.functional import affine_qparams
from lightning_optim.quantization.observer.functional import (
    NUM_BINS,
    bin_centers,
    count_values,
    entropy_threshold,
    exponent_of,
    least_squares_range,
    percentile_range,
    widen_bins,
)
from lightning_optim.quantization.rounding.fake_quantize import fake_quantize

HALF = NUM_BINS // 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def histogram(x):
    exponent = exponent_of(*torch.aminmax(x))
    return count_values(x, exponent).unsqueeze(0), exponent.unsqueeze(0)


@pytest.mark.parametrize(("value", "exponent"), [(0.0, 0), (0.9, 0), (1.0, 1), (4.0, 3), (1e-6, -19), (math.inf, 0)])
def test_the_smallest_power_of_two_above(value, exponent):
    assert exponent_of(torch.tensor(-value), torch.tensor(0.0)) == exponent
    assert exponent_of(torch.tensor(0.0), torch.tensor(value)) == exponent


def test_values_are_counted_one_by_one():
    x = torch.cat([torch.randn(300), torch.tensor([-4.0, 0.0, 3.999])])
    counts = count_values(x, torch.tensor(2))
    expected = [0] * NUM_BINS
    for value in x.tolist():
        expected[min(max(math.floor(value * HALF / 4.0), -HALF), HALF - 1) + HALF] += 1
    assert counts.tolist() == expected


@pytest.mark.parametrize("wider", [0, 1, 5, 11, 12, 40])
def test_bins_of_a_narrow_span_become_those_of_a_wide_one(wider):
    x = torch.randn(2, 500).clamp(-1.9, 1.9)
    narrow, wide = (torch.stack([count_values(row, torch.tensor(span)) for row in x]) for span in (1, 1 + wider))
    spans = torch.tensor([1, 1])
    assert torch.equal(widen_bins(narrow, spans, spans + wider), wide)


@pytest.mark.parametrize("percentile", [50.0, 98.0, 99.9])
def test_percentile_lies_within_a_bin_of_the_sorted_values(percentile):
    x = torch.randn(20_001) * 3.0 + 1.0
    tail = 0.5 * (1.0 - percentile / 100.0)
    expected = torch.quantile(x.double(), torch.tensor([tail, 1.0 - tail], dtype=torch.float64))
    counts, exponent = histogram(x)
    found = torch.stack(percentile_range(counts, exponent, percentile)).flatten()
    width = 2.0 ** int(exponent) / HALF
    assert (found - expected).abs().max() <= 1.5 * width


def test_all_values_reach_from_the_first_to_the_last_bin():
    counts, exponent = histogram(torch.tensor([-0.3, 0.2, 0.6]))
    low, high = percentile_range(counts, exponent, 100.0)
    assert -0.3 - 1 / HALF <= low <= -0.3
    assert 0.6 <= high <= 0.6 + 1 / HALF


def rounding(x, low, high):
    return fake_quantize(x, *affine_qparams(low, high, 0, 7), 0, 7)


def test_least_squares_tries_every_part_of_the_range():
    x = torch.cat([torch.randn(5000), torch.tensor([12.0, -3.0])])
    (counts, exponent), (low, high) = histogram(x), torch.aminmax(x)
    errors = {step: (rounding(x, low * step / 40, high * step / 40) - x).square().mean() for step in range(1, 41)}
    found_low, found_high = least_squares_range(counts, exponent, low[None], high[None], rounding, 40)
    part = float(found_high / high) * 40
    assert found_low.item() == pytest.approx(low.item() * part / 40)
    assert part == pytest.approx(round(part))
    assert errors[round(part)] <= 1.005 * min(errors.values())  # bins stand for their middle
    assert errors[40] > 1.5 * min(errors.values())


def slides(magnitudes, num_levels):
    """The published procedure, bin by bin."""
    losses = {}
    for kept in range(num_levels, len(magnitudes) + 1):
        inside, outside = magnitudes[:kept], sum(magnitudes[kept:])
        reference = list(inside)
        reference[max(place for place in range(kept) if inside[place])] += outside
        candidate = [0.0] * kept
        for level in range(num_levels):
            members = [place for place in range(kept) if place * num_levels // kept == level and inside[place]]
            for place in members:
                candidate[place] = sum(inside[other] for other in members) / len(members)
        losses[kept] = kl_divergence(reference, candidate) if sum(candidate) else math.inf
    return min(reversed(losses), key=losses.get)


def test_entropy_follows_the_published_procedure():
    x = torch.cat([torch.randn(3000) * 0.02, torch.tensor([0.11, 0.124])])
    counts, _ = histogram(x)
    span = torch.tensor([4])  # so wide that few bins hold anything, and the slides' loops end soon
    counts = count_values(x, span[0]).unsqueeze(0)
    magnitudes = (counts[0, HALF:] + counts[0, :HALF].flip(0))[:64].tolist()
    magnitudes[0] = magnitudes[1]
    width = 2.0 ** int(span) / HALF
    kept = slides(magnitudes, num_levels=4)
    found = entropy_threshold(counts, span, torch.tensor([False]), 7, stride=1)
    assert kept < 64
    assert found.item() == pytest.approx((kept + 0.5) * width)


def test_rows_do_not_touch_one_another():
    tensors = [torch.randn(4000), torch.rand(4000) * 9.0, torch.cat([torch.rand(4000), torch.tensor([50.0])])]
    gets_all = torch.tensor([False, True, True])
    pairs = [histogram(x) for x in tensors]
    counts, spans = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    together = entropy_threshold(counts, spans, gets_all, 16, stride=4)
    alone = [entropy_threshold(*pair, each[None], 16, stride=4) for pair, each in zip(pairs, gets_all, strict=True)]
    assert torch.equal(together, torch.cat(alone))
    assert together[2] < 2.0


def test_centers_lie_in_their_bins():
    centers = bin_centers(torch.tensor([0, 3]))
    assert torch.equal(count_values(centers[1], torch.tensor(3)), torch.ones(NUM_BINS, dtype=torch.long))
    assert centers[0, HALF] == 0.5 / HALF
