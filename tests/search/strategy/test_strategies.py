"""What every strategy of ``conf/`` keeps; a new yaml of the group is enrolled by being there."""

import json
import math
import random
import statistics
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_optim.conf
from lightning_optim.search import Condition, Decision, Evolution, Proposal, RandomSearch, SearchSpace

GROUP = Path(lightning_optim.conf.__path__[0]) / "lightning_optim" / "search" / "strategy"
NAMES = ("d0", "d1", "d2", "d3")
SPACE = SearchSpace([Decision(name=name, options=("a", "b", "c"), default=0) for name in NAMES])
_TWO_BLOCKS = (Condition(decision="depth", options=(1,)),)
CONDITIONAL = SearchSpace(
    [
        Decision(name="depth", options=("1", "2"), default=1),
        Decision(name="first", options=("a", "b", "c"), default=0),
        Decision(name="second", options=("a", "b", "c"), default=1, conditions=_TWO_BLOCKS),
        Decision(name="only", options=("a",), default=0),
    ]
)
STRATEGIES = {path.stem: instantiate(OmegaConf.load(path), _convert_="all") for path in sorted(GROUP.glob("*.yaml"))}
ONE_SCORE = {"evolution", "local_search", "reinforce"}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def score(proposal):
    total = sum(proposal.candidate.values())
    return None if total > 6 else [math.nan if total == 2 else float(total)]


def run(search, steps):
    proposals = []
    for _ in range(steps):
        proposals.append(search.ask())
        if proposals[-1] is not None:
            search.tell(proposals[-1], score(proposals[-1]))
    return proposals


def key(proposal):
    return proposal.fidelity, tuple(proposal.candidate.values())


def used_up(search):
    """All proposals of a search, which must come to an end."""
    proposals = []
    while (proposal := search.ask()) is not None:
        proposals.append(proposal)
        search.tell(proposal, score(proposal))
    assert search.ask() is None
    return proposals


@each_strategy
@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["plain", "conditional"])
def test_every_candidate_is_proposed_and_nothing_twice(strategy, space):
    proposals = used_up(strategy.start(space, 0))
    assert len({key(proposal) for proposal in proposals}) == len(proposals)
    assert {key(proposal)[1] for proposal in proposals} == {tuple(candidate.values()) for candidate in space}
    assert all(space.canonical(proposal.candidate) == proposal.candidate for proposal in proposals)


@each_strategy
def test_proposals_are_a_function_of_the_seed(strategy):
    runs = [run(strategy.start(SPACE, seed), 30) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    if strategy != STRATEGIES["grid_search"]:
        assert runs[0] != runs[2]


@each_strategy
@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["plain", "conditional"])
def test_a_search_goes_on_from_a_file_at_every_evaluation_as_if_never_stopped(strategy, space):
    steps = min(space.num_candidates, 45)
    search = strategy.start(space, 0)
    states, expected = [], []
    for _ in range(steps):
        states.append(json.loads(json.dumps(search.state_dict())))
        expected += run(search, 1)
    for stop, state in enumerate(states):
        # A few of the rest each time, all of it now and then: what differs, differs soon.
        ahead = steps - stop if stop % 9 == 0 else min(3, steps - stop)
        again = strategy.start(space, 0)
        again.load_state_dict(state)
        assert run(again, ahead) == expected[stop : stop + ahead]
        if ahead == steps - stop:
            assert again.state_dict() == search.state_dict()


@each_strategy
def test_a_search_goes_on_while_proposals_are_pending(strategy):
    first, second = strategy.start(SPACE, 0), strategy.start(SPACE, 0)
    run(first, 15)
    asked = [first.ask() for _ in range(3)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for search in (first, second):
        for proposal in reversed(asked):
            if proposal is not None:
                search.tell(proposal, score(proposal))
    assert run(first, 12) == run(second, 12)


@each_strategy
def test_first_ones_come_first(strategy):
    first = [dict.fromkeys(NAMES, 2), dict.fromkeys(NAMES, 1)]
    assert [proposal.candidate for proposal in run(strategy.start(SPACE, 0, first=first), 2)] == first


@each_strategy
def test_several_may_be_asked_for_before_one_is_told(strategy):
    search, seen = strategy.start(SPACE, 0), set()
    while batch := [proposal for proposal in (search.ask() for _ in range(9)) if proposal is not None]:
        assert len({key(proposal) for proposal in batch} - seen) == len(batch)
        seen |= {key(proposal) for proposal in batch}
        for proposal in random.Random(0).sample(batch, len(batch)):
            search.tell(proposal, score(proposal))
    assert {candidate for _, candidate in seen} == {tuple(candidate.values()) for candidate in SPACE}


@each_strategy
def test_nothing_but_refusals_uses_the_space_up(strategy):
    search, count = strategy.start(SPACE, 0), 0
    while (proposal := search.ask()) is not None:
        search.tell(proposal, None)
        count += 1
    assert count >= SPACE.num_candidates


@each_strategy
def test_the_state_of_another_search_is_refused(strategy):
    search = strategy.start(SPACE, 0)
    run(search, 3)
    state = search.state_dict()
    other = Evolution(population=7) if strategy != Evolution(population=7) else RandomSearch()
    others = {
        "space": strategy.start(CONDITIONAL, 0),
        "seed": strategy.start(SPACE, 1),
        "strategy": other.start(SPACE, 0),
    }
    for what, search in others.items():
        with pytest.raises(ValueError, match=f"another {what}"):
            search.load_state_dict(state)


@each_strategy
def test_what_was_not_asked_for_and_wrong_numbers_of_scores_are_refused(strategy):
    search = strategy.start(SPACE, 0)
    proposal = search.ask()
    other = {name: (option + 1) % 3 for name, option in proposal.candidate.items()}
    with pytest.raises(ValueError, match="was not asked for"):
        search.tell(Proposal(candidate=other), [1.0])
    with pytest.raises(ValueError, match="needs 1 scores, one per objective, got 2"):
        search.tell(proposal, [1.0, 2.0])


@pytest.mark.parametrize("name", STRATEGIES)
def test_several_scores_are_ranked_or_refused(name):
    strategy = STRATEGIES[name]
    if name in ONE_SCORE:
        with pytest.raises(ValueError, match="ranks by one score, got 2 objectives"):
            strategy.start(SPACE, 0, num_scores=2)
        return
    search = strategy.start(SPACE, 0, num_scores=2)
    for _ in range(60):
        proposal = search.ask()
        values = list(proposal.candidate.values())
        search.tell(proposal, None if values[0] == values[1] == 2 else [float(sum(values)), -float(values[-1])])
    assert len(search.state_dict()["proposed"]) == 60


def evaluations_to_the_best(strategy, seed):
    """Of a sum of one term for each option: the best of 729 has one option in each of six decisions."""
    draw = random.Random(f"terms/{seed}")
    terms = {f"d{number}": [draw.random() for _ in range(3)] for number in range(6)}
    space = SearchSpace([Decision(name=name, options=("a", "b", "c"), default=0) for name in terms])
    best = {name: max(range(3), key=options.__getitem__) for name, options in terms.items()}
    search = strategy.start(space, seed)
    for count in range(1, 730):
        proposal = search.ask()
        if proposal.candidate == best:
            return count
        search.tell(proposal, [sum(terms[name][option] for name, option in proposal.candidate.items())])
    raise AssertionError("the whole space was proposed without the best")


LEARNS = ("evolution", "local_search", "pairwise_surrogate", "pareto_evolution", "reinforce")


@pytest.mark.parametrize("name", LEARNS)
def test_what_learns_finds_the_best_of_a_separable_space_sooner_than_chance(name):
    counts = [evaluations_to_the_best(STRATEGIES[name], seed) for seed in range(3)]
    assert statistics.mean(counts) < 365 / 2  # random search needs half of the 729 on average


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


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="population"):
        Evolution(population=1)
    with pytest.raises(ValueError, match="sample"):
        Evolution(population=4, sample=5)
    with pytest.raises(ValueError, match="at least one objective"):
        RandomSearch().start(SPACE, 0, num_scores=0)
