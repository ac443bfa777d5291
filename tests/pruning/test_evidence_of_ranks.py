import pytest
import torch

from lightning_optim.pruning.evidence_of_ranks import gather_ranks, share_of_rank


def state(value, count):
    return {"activity": {"totals": {"a": torch.full((2,), value), "b": torch.ones(1)}, "counts": {"a": count, "b": 1}}}


SAVED = [state(1.0, 3), state(10.0, 4), state(100.0, 5)]


def test_one_process_holds_its_own():
    assert gather_ranks(SAVED[0], 1) == [SAVED[0]]


@pytest.mark.parametrize("rank", range(3))
def test_as_many_ranks_go_on_each_with_its_own(rank):
    assert share_of_rank(SAVED, rank, 3, ()) is SAVED[rank]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_shares_of_other_ranks_add_up_to_the_same(size):
    shares = [share_of_rank(SAVED, rank, size, ())["activity"] for rank in range(size)]
    assert sum(share["totals"]["a"] for share in shares).tolist() == [111.0, 111.0]
    assert sum(share["totals"]["b"] for share in shares).tolist() == [3.0]
    assert sum(share["counts"]["a"] for share in shares) == 12


def test_parts_of_weights_cannot_be_spread_otherwise_and_that_is_said():
    with pytest.warns(UserWarning, match="activity of 3 ranks cannot be spread over 2"):
        assert share_of_rank(SAVED, 0, 2, {"activity"}) == {}
