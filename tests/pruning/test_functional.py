import pytest
import torch

from lightning_optim.pruning import functional
from lightning_optim.pruning.functional import drop_lowest, mask_from_scores


@pytest.fixture
def awkward():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(7, 5, generator=generator),
        torch.randn(100, generator=generator).round(decimals=1),
        -torch.rand(3, generator=generator),
        torch.zeros(9),
        -torch.zeros(3),
        torch.tensor([-torch.inf, torch.inf, 1e-45, -1e-45]),
        torch.empty(0),
    ]


def test_every_count_drops_exactly_that_many_of_the_lowest(awkward):
    flat = torch.cat([score.flatten() for score in awkward])
    ranked = flat.sort().values
    for drop in range(len(flat) + 1):
        keep = torch.cat([mask.flatten() for mask in drop_lowest(awkward, drop)])
        assert int((~keep).sum()) == drop
        assert torch.equal(flat[~keep].sort().values, ranked[:drop])


def test_ties_fall_in_order():
    masks = drop_lowest([torch.ones(2), torch.ones(2)], 3)
    assert [mask.tolist() for mask in masks] == [[False, False], [False, True]]


@pytest.mark.parametrize("bad", [float("nan"), -float("nan")])
def test_a_score_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="NaN"):
        drop_lowest([torch.tensor([1.0, bad])], 1)


def test_more_than_there_is_cannot_be_dropped():
    with pytest.raises(ValueError, match="cannot drop 3 of 2"):
        drop_lowest([torch.ones(2)], 3)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        mask_from_scores(torch.ones(4), sparsity)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_ranked_as_float32(dtype):
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=dtype)
    assert drop_lowest([scores], 2)[0].tolist() == [True, False, True, False]


def test_what_float32_cannot_tell_apart_is_a_tie():
    scores = torch.tensor([1.0 + 2e-9, 1.0 + 1e-9, 1.0, 2.0], dtype=torch.float64)
    assert drop_lowest([scores], 2)[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize("bits", [0x7F800001, -0x7FFFFF])
def test_the_smallest_pattern_of_bits_that_is_no_number_is_refused(bits):
    score = torch.tensor([0, bits], dtype=torch.int32).view(torch.float32)
    assert score.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="NaN"):
        drop_lowest([score], 1)


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "expanded"])
def test_layout_in_memory_changes_nothing(layout):
    plain = torch.arange(24.0).view(2, 3, 4, 1).remainder(5.0)
    scores = {
        "transposed": plain.transpose(0, 2).contiguous().transpose(0, 2),
        "channels_last": plain.contiguous(memory_format=torch.channels_last),
        "expanded": plain[:, :1].expand(2, 3, 4, 1),
    }[layout]
    expected = drop_lowest([scores.clone(memory_format=torch.contiguous_format)], 13)[0]
    assert torch.equal(drop_lowest([scores], 13)[0], expected)


@pytest.mark.parametrize("drop", [1, 20, 40, 66, 67, 100, 132])
def test_parts_are_seen_as_one(monkeypatch, awkward, drop):
    expected = drop_lowest(awkward, drop)
    monkeypatch.setattr(functional, "_PART", 3)
    assert all(map(torch.equal, drop_lowest(awkward, drop), expected))


def test_scores_are_left_as_they_are(awkward):
    before = [score.clone() for score in awkward]
    drop_lowest(awkward, 20)
    assert all(torch.equal(now, then) for now, then in zip(awkward, before, strict=True))
