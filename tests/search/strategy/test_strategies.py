import json
import math

import pytest

from lightning_optim.search import Condition, Decision, Evolution, Proposal, RandomSearch, SearchSpace

NAMES = ("d0", "d1", "d2", "d3")
SPACE = SearchSpace([Decision(name=name, options=("a", "b", "c"), default=0) for name in NAMES])
CONDITIONAL = SearchSpace(
    [
        Decision(name="depth", options=("1", "2"), default=1),
        Decision(name="first", options=("a", "b", "c"), default=0),
        Decision(
            name="second", options=("a", "b", "c"), default=0, conditions=(Condition(decision="depth", options=(1,)),)
        ),
    ]
)
STRATEGIES = [RandomSearch(), Evolution(population=6, sample=3)]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)


def run(search, steps):
    proposals = []
    for _ in range(steps):
        proposals.append(search.ask())
        if proposals[-1] is not None:
            total = sum(proposals[-1].candidate.values())
            search.tell(proposals[-1], None if total > 6 else [float(total)])
    return proposals


def key(proposal):
    return proposal.fidelity, tuple(proposal.candidate.values())


@each_strategy
@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["plain", "conditional"])
def test_the_whole_space_is_proposed_once_then_nothing(strategy, space):
    count = space.num_candidates
    proposals = run(strategy.start(space, 0), count + 2)
    assert len({key(proposal) for proposal in proposals[:count]}) == count
    assert proposals[count:] == [None, None]


@each_strategy
def test_proposals_are_a_function_of_the_seed(strategy):
    runs = [run(strategy.start(SPACE, seed), 30) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@each_strategy
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 17, 39])
def test_a_search_goes_on_from_a_file_as_if_never_stopped(strategy, stop):
    expected = run(strategy.start(SPACE, 0), 40)
    first = strategy.start(SPACE, 0)
    begun = run(first, stop)
    second = strategy.start(SPACE, 0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + run(second, 40 - stop) == expected
    assert second.state_dict() == json.loads(json.dumps(second.state_dict()))


@each_strategy
def test_first_ones_come_first(strategy):
    first = [dict.fromkeys(NAMES, 2), dict.fromkeys(NAMES, 1)]
    assert [proposal.candidate for proposal in run(strategy.start(SPACE, 0, first=first), 2)] == first


@each_strategy
def test_several_may_be_asked_for_before_one_is_told(strategy):
    search = strategy.start(SPACE, 0)
    for _ in range(9):
        batch = [search.ask() for _ in range(9)]
        for proposal in batch:
            search.tell(proposal, [math.nan if sum(proposal.candidate.values()) == 2 else 1.0])
    assert search.ask() is None


@each_strategy
def test_the_state_of_another_search_is_refused(strategy):
    search = strategy.start(SPACE, 0)
    run(search, 3)
    state = search.state_dict()
    others = {
        "space": strategy.start(CONDITIONAL, 0),
        "seed": strategy.start(SPACE, 1),
        "strategy": Evolution(population=7).start(SPACE, 0),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"another {what}"):
            other.load_state_dict(state)


@each_strategy
def test_what_was_not_asked_for_and_wrong_numbers_of_scores_are_refused(strategy):
    search = strategy.start(SPACE, 0)
    proposal = search.ask()
    other = {name: (option + 1) % 3 for name, option in proposal.candidate.items()}
    with pytest.raises(ValueError, match="was not asked for"):
        search.tell(Proposal(candidate=other), [1.0])
    with pytest.raises(ValueError, match="needs 1 scores, one per objective, got 2"):
        search.tell(proposal, [1.0, 2.0])


def test_the_oldest_die_and_children_differ_from_a_living_parent_in_one_decision():
    search = Evolution(population=6, sample=3).start(SPACE, 0)
    proposals = []
    for step in range(30):
        proposal = search.ask()
        if step >= 6:
            distances = [sum(proposal.candidate[name] != parent.candidate[name] for name in NAMES)
                         for parent in proposals[-6:]]  # fmt: skip
            assert min(distances) <= 2
        proposals.append(proposal)
        search.tell(proposal, [float(step)])


def test_what_is_not_allowed_has_no_children():
    # The least total that is refused is 7: a child of a refused one could have 8, a child of an allowed one 6 + 2.
    search = Evolution(population=2, sample=2).start(SPACE, 0)
    alive = [dict.fromkeys(NAMES, 0)]
    for _ in range(30):
        proposal = search.ask()
        is_allowed = sum(proposal.candidate.values()) <= 2
        search.tell(proposal, [1.0] if is_allowed else None)
        alive += [proposal.candidate] if is_allowed else []
    assert len(alive) > 8


def test_one_score_is_all_that_evolution_ranks_by():
    with pytest.raises(ValueError, match="Evolution ranks by one score, got 2 objectives"):
        Evolution().start(SPACE, 0, num_scores=2)
    assert RandomSearch().start(SPACE, 0, num_scores=2).ask() is not None


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="population"):
        Evolution(population=1)
    with pytest.raises(ValueError, match="sample"):
        Evolution(population=4, sample=5)
    with pytest.raises(ValueError, match="at least one objective"):
        RandomSearch().start(SPACE, 0, num_scores=0)
