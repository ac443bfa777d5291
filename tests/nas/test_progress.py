import itertools
import json
import math
import random

import pytest

from lightning_optim.nas import Screening, SearchResult, Selection
from lightning_optim.nas.progress import SearchProgress
from lightning_optim.search import Decision, Evolution, RandomSearch, SearchSpace

DECISIONS = tuple(Decision(name=f"d{i}", options=("a", "b", "c", "d"), default=0) for i in range(5))
SEARCHED = SearchSpace(DECISIONS)
NAMES = [decision.name for decision in DECISIONS]
SPACE = [dict(zip(NAMES, options, strict=True)) for options in itertools.product(range(4), repeat=5)]
STRATEGIES = [RandomSearch(), Evolution(population=8, sample=3)]


def macs(architecture):
    return sum((option + 1) ** 2 for option in architecture.values())


def score(architecture):
    draw = random.Random(repr(sorted(architecture.items())))
    return sum(architecture.values()) - 0.5 * abs(architecture["d0"] - architecture["d1"]) + 0.01 * draw.random()


def scored_by(evaluate):
    return lambda proposals: [{"score": evaluate(proposal.candidate)} for proposal in proposals]


def costed_by(measure):
    return lambda architecture, entry: measure(architecture)


def run_search(search, evaluate, measure, selection, at_once=1):
    return SearchProgress(search, selection, at_once).run(scored_by(evaluate), costed_by(measure))


def test_evolution_finds_the_optimum_under_a_bound_in_a_third_of_the_space():
    bound = 40
    best = max((found for found in SPACE if macs(found) <= bound), key=score)
    for seed in range(5):
        search = Evolution(population=16, sample=6).start(SEARCHED, seed)
        result = run_search(search, score, macs, Selection(max_cost=bound, evaluations=340))
        assert result.pick.architecture == best


def test_nothing_over_the_bound_is_evaluated_and_nothing_twice():
    for strategy in STRATEGIES:
        result = run_search(strategy.start(SEARCHED, 0), score, macs, Selection(max_cost=20, evaluations=60))
        seen = [tuple(entry.architecture.values()) for entry in result.evaluations]
        assert len(set(seen)) == len(seen) == 60
        assert all(entry.cost <= 20 for entry in result.evaluations)


def test_a_tight_bound_is_met_from_the_cheapest_architecture_on():
    search = Evolution().start(SEARCHED, 0, first=[dict.fromkeys(NAMES, 0)])
    result = run_search(search, score, macs, Selection(max_cost=8, evaluations=6))
    assert len(result.evaluations) == 6  # the cheapest and its five neighbours: 0.6 % of the space


def test_the_pareto_front_is_what_brute_force_finds():
    result = run_search(RandomSearch().start(SEARCHED, 1), score, macs, Selection(evaluations=200))
    front = [
        one
        for one in result.evaluations
        if not any(
            (other.score >= one.score and other.cost < one.cost) or (other.score > one.score and other.cost <= one.cost)
            for other in result.evaluations
        )
    ]
    assert list(result.pareto) == sorted(front, key=lambda entry: entry.cost)


def test_min_mode_picks_the_lowest_and_ties_go_to_the_cheapest():
    result = run_search(RandomSearch().start(SEARCHED, 0), score, macs, Selection(mode="min", evaluations=2000))
    assert result.pick.score == min(map(score, SPACE))
    assert len(result.evaluations) == len(SPACE)
    tied = run_search(RandomSearch().start(SEARCHED, 0), lambda _: 1.0, macs, Selection(evaluations=2000))
    assert tied.pick.cost == 5
    assert tied.pareto == (tied.pick,)


def test_of_equals_on_the_front_the_first_stands():
    result = run_search(RandomSearch().start(SEARCHED, 0), lambda _: 1.0, lambda _: 7, Selection(evaluations=9))
    assert result.pareto == result.evaluations[:1] == (result.pick,)


def test_nan_is_never_picked():
    def evaluate(architecture):
        return math.nan if architecture["d0"] else score(architecture)

    result = run_search(Evolution().start(SEARCHED, 0), evaluate, macs, Selection(evaluations=100))
    assert result.pick.architecture["d0"] == 0
    with pytest.raises(ValueError, match="scored NaN"):
        run_search(RandomSearch().start(SEARCHED, 0), lambda _: math.nan, macs, Selection(evaluations=3))


def test_a_bound_that_nothing_meets_says_what_the_cheapest_costs():
    with pytest.raises(ValueError, match="MACs at most 4, the cheapest has 5"):
        run_search(RandomSearch().start(SEARCHED, 0), score, macs, Selection(max_cost=4, evaluations=100))


def test_a_result_survives_as_plain_primitives():
    result = run_search(RandomSearch().start(SEARCHED, 0), score, macs, Selection(evaluations=10))
    assert SearchResult.from_state_dict(result.state_dict()) == result


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("stop", [1, 17])
def test_a_search_that_was_killed_continues_to_the_same_result(strategy, stop):
    selection = Selection(max_cost=30, evaluations=40)
    whole = SearchProgress(strategy.start(SEARCHED, 0), selection).run(scored_by(score), costed_by(macs))
    files, scored = [], []

    def evaluate(architecture):
        if len(scored) == stop:
            raise KeyboardInterrupt
        scored.append(architecture)
        return score(architecture)

    def save(progress):
        files.append(json.dumps(progress.state_dict()))

    with pytest.raises(KeyboardInterrupt):
        SearchProgress(strategy.start(SEARCHED, 0), selection).run(scored_by(evaluate), costed_by(macs), save)
    rest = []
    resumed = SearchProgress(strategy.start(SEARCHED, 0), selection)
    resumed.load_state_dict(json.loads(files[-1]))
    assert resumed.run(scored_by(lambda found: rest.append(found) or score(found)), costed_by(macs)) == whole
    assert scored + rest == [entry.architecture for entry in whole.evaluations]


def test_a_finished_search_continues_with_more_evaluations_and_refuses_fewer():
    def progress(evaluations):
        return SearchProgress(Evolution().start(SEARCHED, 0), Selection(evaluations=evaluations))

    first, longer = progress(10), progress(30)
    first.run(scored_by(score), costed_by(macs))
    longer.load_state_dict(first.state_dict())
    assert longer.run(scored_by(score), costed_by(macs)) == progress(30).run(scored_by(score), costed_by(macs))
    with pytest.raises(ValueError, match="raise it"):
        progress(9).load_state_dict(first.state_dict())


def test_of_several_proposals_the_one_with_the_best_zero_cost_score_is_evaluated():
    selection = Selection(max_cost=40, evaluations=10, screening=Screening(candidates=5))
    own, screened, told = dict.fromkeys(NAMES, 0), [], []

    class Spy:
        """A search that notes what it is told."""

        def __init__(self, search):
            self.ask, self._search = search.ask, search

        def tell(self, proposal, scores):
            told.append((proposal.candidate, scores))
            self._search.tell(proposal, scores)

    def screen(architecture):
        screened.append(architecture)
        return -macs(architecture)

    search = Spy(RandomSearch().start(SEARCHED, 0, first=[own]))
    progress = SearchProgress(search, selection, screen=screen, unscreened=[own])
    result = progress.run(scored_by(score), costed_by(macs))
    assert result.evaluations[0].architecture == own
    assert len(result.evaluations) == 10
    assert own not in screened
    assert len(screened) == 9 * 5
    for place, entry in enumerate(result.evaluations[1:]):
        rivals = screened[place * 5 : place * 5 + 5]
        assert entry.cost == min(map(macs, rivals))
    assert sum(scores is not None for _, scores in told) == 10
    assert len({tuple(found.values()) for found, _ in told}) == len(told)


def test_screening_ends_with_the_space():
    small = SearchSpace(DECISIONS[:2])
    progress = SearchProgress(
        RandomSearch().start(small, 0), Selection(screening=Screening(candidates=3)), screen=lambda found: found["d0"]
    )
    result = progress.run(scored_by(lambda found: 1.0), lambda found, entry: 1.0)
    assert len(result.evaluations) == 6  # of 16: five of three, and the last one
