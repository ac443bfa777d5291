import pytest
import torch

from lightning_optim.search import Decision, Evolution, RandomSearch
from lightning_optim.search.decision import sample_candidate

DECISIONS = tuple(Decision(name=f"d{i}", options=("a", "b", "c"), default=0) for i in range(4))
STRATEGIES = [RandomSearch(), Evolution(population=6, sample=3)]


def run(search, steps):
    proposals = []
    for _ in range(steps):
        proposals.append(search.ask())
        if proposals[-1] is not None:
            total = sum(proposals[-1].values())
            search.tell(proposals[-1], None if total > 6 else float(total))
    return proposals


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_the_whole_space_is_proposed_once_then_nothing(strategy):
    proposals = run(strategy.start(DECISIONS, 0), 82)
    assert len({tuple(proposal.values()) for proposal in proposals[:81]}) == 81
    assert proposals[81] is None


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_proposals_are_a_function_of_the_seed(strategy):
    runs = [run(strategy.start(DECISIONS, seed), 30) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_a_search_goes_on_from_a_file_as_if_never_stopped(strategy, tmp_path):
    expected = run(strategy.start(DECISIONS, 0), 40)
    first = strategy.start(DECISIONS, 0)
    begun = run(first, 17)
    torch.save(first.state_dict(), tmp_path / "search.pt")
    second = strategy.start(DECISIONS, 0)
    second.load_state_dict(torch.load(tmp_path / "search.pt", weights_only=True))
    assert begun + run(second, 23) == expected


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_first_ones_come_first(strategy):
    first = [dict.fromkeys(("d0", "d1", "d2", "d3"), 2), dict.fromkeys(("d0", "d1", "d2", "d3"), 1)]
    assert run(strategy.start(DECISIONS, 0, first), 2) == first


def test_the_oldest_die_and_children_differ_from_a_living_parent_in_one_decision():
    search = Evolution(population=6, sample=3).start(DECISIONS, 0)
    for step in range(30):
        alive = [dict(candidate) for candidate, _ in search.state_dict()["alive"]]
        proposal = search.ask()
        if step >= 6:
            assert min(sum(proposal[name] != parent[name] for name in proposal) for parent in alive) <= 2
        search.tell(proposal, float(step))
    assert [score for _, score in search.state_dict()["alive"]] == [24.0, 25.0, 26.0, 27.0, 28.0, 29.0]


def test_what_is_not_allowed_never_lives():
    search = Evolution(population=6, sample=3).start(DECISIONS, 0)
    run(search, 60)
    assert all(sum(candidate.values()) <= 6 for candidate, _ in search.state_dict()["alive"])


def test_every_option_is_drawn_equally_often():
    draws = [sample_candidate(DECISIONS, 0, step)["d2"] for step in range(3000)]
    assert all(abs(draws.count(option) - 1000) < 120 for option in range(3))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="population"):
        Evolution(population=1)
    with pytest.raises(ValueError, match="sample"):
        Evolution(population=4, sample=5)
    with pytest.raises(ValueError, match="at least one decision"):
        RandomSearch().start([], 0)
    with pytest.raises(ValueError, match="decides 1 things"):
        Evolution().start(DECISIONS, 0).load_state_dict(
            {"proposed": [[0]], "alive": [], "born": 0, "refused_in_a_row": 0}
        )
