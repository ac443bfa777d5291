import itertools
import math
import random

import pytest

from lightning_optim.nas.selection import SearchResult, Selection, run_search
from lightning_optim.search.decision import Decision
from lightning_optim.search.strategy.evolution import Evolution
from lightning_optim.search.strategy.random import RandomSearch

DECISIONS = tuple(Decision(name=f"d{i}", options=("a", "b", "c", "d"), default=0) for i in range(5))
NAMES = [decision.name for decision in DECISIONS]
SPACE = [dict(zip(NAMES, options, strict=True)) for options in itertools.product(range(4), repeat=5)]


def macs(architecture):
    return sum((option + 1) ** 2 for option in architecture.values())


def score(architecture):
    draw = random.Random(repr(sorted(architecture.items())))
    return sum(architecture.values()) - 0.5 * abs(architecture["d0"] - architecture["d1"]) + 0.01 * draw.random()


def test_evolution_finds_the_optimum_under_a_bound_in_a_third_of_the_space():
    bound = 40
    best = max((found for found in SPACE if macs(found) <= bound), key=score)
    for seed in range(5):
        search = Evolution(population=16, sample=6).start(DECISIONS, seed)
        findings = run_search(search, score, macs, Selection(max_macs=bound, evaluations=340))
        assert findings.pick.architecture == best


def test_nothing_over_the_bound_is_judged_and_nothing_twice():
    for strategy in (RandomSearch(), Evolution(population=8, sample=3)):
        findings = run_search(strategy.start(DECISIONS, 0), score, macs, Selection(max_macs=20, evaluations=60))
        judged = [tuple(entry.architecture.values()) for entry in findings.judged]
        assert len(set(judged)) == len(judged) == 60
        assert all(entry.macs <= 20 for entry in findings.judged)


def test_a_tight_bound_is_met_from_the_cheapest_architecture_on():
    search = Evolution().start(DECISIONS, 0, first=[dict.fromkeys(NAMES, 0)])
    findings = run_search(search, score, macs, Selection(max_macs=8, evaluations=6))
    assert len(findings.judged) == 6  # the cheapest and its five neighbours: 0.6 % of the space


def test_the_pareto_front_is_what_brute_force_finds():
    findings = run_search(RandomSearch().start(DECISIONS, 1), score, macs, Selection(evaluations=200))
    front = [
        one
        for one in findings.judged
        if not any(
            (other.score >= one.score and other.macs < one.macs) or (other.score > one.score and other.macs <= one.macs)
            for other in findings.judged
        )
    ]
    assert list(findings.pareto) == sorted(front, key=lambda entry: entry.macs)


def test_min_mode_picks_the_lowest_and_ties_go_to_the_cheapest():
    findings = run_search(RandomSearch().start(DECISIONS, 0), score, macs, Selection(mode="min", evaluations=2000))
    assert findings.pick.score == min(map(score, SPACE))
    assert len(findings.judged) == len(SPACE)
    tied = run_search(RandomSearch().start(DECISIONS, 0), lambda _: 1.0, macs, Selection(evaluations=2000))
    assert tied.pick.macs == 5
    assert tied.pareto == (tied.pick,)


def test_of_equals_on_the_front_the_first_stands():
    findings = run_search(RandomSearch().start(DECISIONS, 0), lambda _: 1.0, lambda _: 7, Selection(evaluations=9))
    assert findings.pareto == findings.judged[:1] == (findings.pick,)


def test_nan_is_never_picked():
    def judge(architecture):
        return math.nan if architecture["d0"] else score(architecture)

    findings = run_search(Evolution().start(DECISIONS, 0), judge, macs, Selection(evaluations=100))
    assert findings.pick.architecture["d0"] == 0
    with pytest.raises(ValueError, match="scored NaN"):
        run_search(RandomSearch().start(DECISIONS, 0), lambda _: math.nan, macs, Selection(evaluations=3))


def test_a_bound_that_nothing_meets_says_what_the_cheapest_costs():
    with pytest.raises(ValueError, match="max_macs=4, the cheapest has 5"):
        run_search(RandomSearch().start(DECISIONS, 0), score, macs, Selection(max_macs=4, evaluations=100))


def test_findings_survive_as_plain_primitives():
    findings = run_search(RandomSearch().start(DECISIONS, 0), score, macs, Selection(evaluations=10))
    assert SearchResult.from_state_dict(findings.state_dict()) == findings


@pytest.mark.parametrize(
    "settings", [{"mode": "best"}, {"max_macs": 0}, {"evaluations": 0}, {"recalibration_batches": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Selection(**settings)
