import pytest
import torch

from lightning_optim.pruning import Evidence, Statistic
from lightning_optim.pruning.evidence import RunningSum, measure, merge_ranks


def test_activations_are_summed_over_everything_but_the_channels():
    torch.manual_seed(0)
    values = torch.randn(3, 4, 5, 6)
    for dim in range(4):
        total, count = measure(torch.abs, values, dim)
        assert count == values.numel() // values.shape[dim]
        expected = [sum(abs(float(x)) for x in values.select(dim, channel).flatten()) for channel in range(len(total))]
        assert total.tolist() == pytest.approx(expected, rel=1e-5)


def test_ranks_are_merged_in_one_collective():
    ranks = []
    for rank in range(3):
        tallies = [RunningSum(), RunningSum()]
        tallies[0].update("a", torch.arange(3.0) + rank, count=rank + 1)
        tallies[0].update("b", torch.ones(1), count=2)
        tallies[1].update("a", torch.full((2,), 10.0**rank))
        ranks.append(tallies)
    posted = []
    for tallies in ranks:
        merge_ranks(tallies, posted.append)  # adds nothing, and shows what is sent
    assert len(posted) == 3
    whole = torch.stack(posted).sum(0)
    for tallies in ranks:
        merge_ranks(tallies, lambda flat: flat.copy_(whole))
        assert tallies[0].totals["a"].tolist() == [3.0, 6.0, 9.0]
        assert tallies[0].counts == {"a": 6, "b": 6}
        assert tallies[1].totals["a"].tolist() == [111.0, 111.0]
        assert tallies[1].counts == {"a": 3}


def test_a_cut_weight_keeps_the_sums_of_what_is_left():
    tally = RunningSum()
    tally.update("w", torch.arange(12.0).view(4, 3))
    tally.update("channels", torch.arange(4.0))
    for name in ("w", "channels", "unknown"):
        tally.keep(name, 0, torch.tensor([0, 2]))
        tally.keep(name, 1, torch.tensor([1]))
    assert tally.totals["w"].tolist() == [[1.0], [7.0]]
    assert tally.totals["channels"].tolist() == [0.0, 2.0]


def test_an_update_does_not_change_what_was_added_before():
    tally, first = RunningSum(), torch.ones(2)
    tally.update("w", first)
    state = tally.state_dict()
    tally.update("w", torch.ones(2))
    assert first.tolist() == state["totals"]["w"].tolist() == [1.0, 1.0]


def test_only_what_must_be_gathered_has_a_statistic():
    with pytest.raises(ValueError, match="of gradients, inputs or outputs"):
        Statistic(name="size", of=Evidence.WEIGHT, term=torch.abs)
