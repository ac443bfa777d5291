import math
from collections import Counter

import pytest

from lightning_optim.search import Decision, Evolution, GridSearch, Hyperband, SearchSpace, SuccessiveHalving
from lightning_optim.search.strategy.rungs import rung_fidelities

SPACE = SearchSpace([Decision(name=name, options=tuple("abcdefghi"), default=0) for name in "pq"])


def spent(search, steps, score):
    counts = Counter()
    for _ in range(steps):
        proposal = search.ask()
        counts[proposal.fidelity] += 1
        search.tell(proposal, score(proposal))
    return counts


def test_the_best_third_rises_from_rung_to_rung():
    # Scores fall with the order of the grid, so that the first of each three, and of each nine, rises and no other.
    search = SuccessiveHalving(strategy=GridSearch()).start(SPACE, 0)
    assert spent(search, 13, lambda proposal: [-sum(proposal.candidate.values())]) == {1: 9, 3: 3, 9: 1}


def test_brackets_of_hyperband_begin_with_as_many_as_the_table_of_the_paper_has():
    # Table 1 for R = 81 and eta = 3: 81, 34, 15, 8 and 5 candidates begin at 1, 3, 9, 27 and 81.
    space = SearchSpace([Decision(name=name, options=tuple("abcdefghi"), default=0) for name in "pqr"])
    search = Hyperband(max_fidelity=81, strategy=GridSearch()).start(space, 0)
    begun = Counter()
    for _ in range(81 + 34 + 15 + 8 + 5):
        begun[search.ask().fidelity] += 1  # nothing is told, and so nothing rises
    assert begun == {1: 81, 3: 34, 9: 15, 27: 8, 81: 5}


def test_the_strategy_within_is_told_the_score_of_the_highest_fidelity():
    search = SuccessiveHalving(strategy=Evolution(population=2, sample=1), factor=2, max_fidelity=2).start(SPACE, 0)
    spent(search, 12, lambda proposal: [100.0 * proposal.fidelity + sum(proposal.candidate.values())])
    state = search.state_dict()
    risen = {tuple(state["proposed"][number][1]) for number, _ in state["told"] if state["proposed"][number][0] == 2}
    inner = {tuple(state["inner"]["proposed"][number][1]): scores[0] for number, scores in state["inner"]["told"]}
    assert risen
    assert all((score >= 200.0) == (options in risen) for options, score in inner.items())


def test_what_is_refused_or_fails_does_not_rise():
    search = SuccessiveHalving(strategy=GridSearch(), factor=2, max_fidelity=2).start(SPACE, 0)
    counts = spent(search, 20, lambda proposal: [math.nan] if proposal.candidate["q"] % 2 else None)
    assert counts == {1: 20}


def test_fidelities_are_never_below_the_smallest():
    assert rung_fidelities(1, 9, 3) == (1, 3, 9)
    assert rung_fidelities(4, 100, 3) == (11, 33, 100)
    assert rung_fidelities(5, 5, 3) == (5,)


def test_settings_that_make_no_rungs_are_refused():
    with pytest.raises(ValueError, match="1 <= min_fidelity <= max_fidelity, got 4 and 3"):
        SuccessiveHalving(min_fidelity=4, max_fidelity=3)
    with pytest.raises(ValueError, match="factor must be at least 2, got 1"):
        Hyperband(factor=1)
    with pytest.raises(ValueError, match="has fidelities of its own"):
        Hyperband(strategy=SuccessiveHalving()).start(SPACE, 0).ask()
