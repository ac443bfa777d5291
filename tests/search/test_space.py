import itertools
import random

import pytest

from lightning_optim.search import Condition, Decision, SearchSpace

DEPTH = Decision(name="depth", options=("1", "2", "3"), default=2)
KERNELS = [
    Decision(
        name=f"kernel{block}",
        options=("3", "5"),
        default=0,
        conditions=(Condition(decision="depth", options=tuple(range(block, 3))),),
    )
    for block in range(3)
]
SPACE = SearchSpace([DEPTH, *KERNELS])


def chain(length):
    """Blocks, each with a choice to skip it, a kernel and, with kernel 5 alone, a dilation."""
    decisions = []
    for block in range(length):
        there = Condition(decision=f"block{block}", options=(1,))
        wide = Condition(decision=f"kernel{block}", options=(1,))
        decisions += [
            Decision(name=f"block{block}", options=("skip", "conv"), default=1),
            Decision(name=f"kernel{block}", options=("3", "5"), default=0, conditions=(there,)),
            Decision(name=f"dilation{block}", options=("1", "2", "3"), default=1, conditions=(wide,)),
        ]
    return SearchSpace(decisions)


def every_assignment(space):
    names = [decision.name for decision in space.decisions]
    ranges = [range(len(decision.options)) for decision in space.decisions]
    return [dict(zip(names, options, strict=True)) for options in itertools.product(*ranges)]


def key(candidate):
    return tuple(candidate.items())


@pytest.mark.parametrize("space", [SPACE, chain(1), chain(2)])
def test_the_size_is_the_number_of_different_candidates(space):
    different = {key(space.canonical(candidate)) for candidate in every_assignment(space)}
    assert space.num_candidates == len(different)
    assert [key(candidate) for candidate in space] == sorted(different, key=[key(c) for c in space].index)
    assert len(list(space)) == len(different)


def test_sizes_by_hand():
    assert SPACE.num_candidates == 2 + 4 + 8
    assert chain(1).num_candidates == 1 + 1 + 3
    assert chain(60).num_candidates == 5**60


def test_the_condition_of_an_inactive_decision_does_not_hold():
    # kernel0 is inactive and its default, 3, is no 5; and even with 5 as its default the dilation would be inactive.
    there = Condition(decision="block", options=(1,))
    space = SearchSpace(
        [
            Decision(name="block", options=("skip", "conv"), default=0),
            Decision(name="kernel", options=("3", "5"), default=1, conditions=(there,)),
            Decision(
                name="dilation", options=("1", "2"), default=0, conditions=(Condition(decision="kernel", options=(1,)),)
            ),
        ]
    )
    assert space.num_candidates == 1 + 1 + 2
    assert [entry.name for entry in space.active(space.default)] == ["block"]
    assert space.canonical({"block": 0, "kernel": 0, "dilation": 1}) == {"block": 0, "kernel": 1, "dilation": 0}


def test_neighbours_are_all_that_differ_in_one_active_decision():
    candidate = {"depth": 1, "kernel0": 0, "kernel1": 1, "kernel2": 0}
    near = [key(other) for other in SPACE.neighbours(candidate)]
    assert len(near) == len(set(near)) == 2 + 1 + 1
    assert key({"depth": 0, "kernel0": 0, "kernel1": 0, "kernel2": 0}) in near  # what went inactive counts no more
    assert all(key(SPACE.canonical(dict(other))) == other for other in near)


def test_a_mutation_changes_one_active_decision_and_draws_what_becomes_active():
    draw, block = random.Random(0), chain(1)
    mutants = [block.mutated({"block0": 0, "kernel0": 0, "dilation0": 1}, draw) for _ in range(200)]
    assert {key(mutant) for mutant in mutants} == {key(c) for c in block if c["block0"] == 1}
    mutants = [SPACE.mutated({"depth": 1, "kernel0": 0, "kernel1": 1, "kernel2": 0}, draw) for _ in range(200)]
    assert {sum(mutant[name] != value for name, value in {"depth": 1, "kernel0": 0}.items()) for mutant in mutants} == {
        0,
        1,
    }
    assert all(key(SPACE.canonical(mutant)) == key(mutant) for mutant in mutants)


def test_a_space_of_one_candidate_has_no_mutant():
    space = SearchSpace([Decision(name="only", options=("own",), default=0)])
    assert space.mutated({"only": 0}, random.Random(0)) == {"only": 0}
    assert (space.num_candidates, space.neighbours({"only": 0})) == (1, [])


def test_every_option_is_drawn_equally_often():
    draws = [SPACE.sample(random.Random(f"0/{step}"))["kernel0"] for step in range(3000)]
    assert all(abs(draws.count(option) - 1500) < 150 for option in range(2))


def test_wrong_spaces_and_candidates_are_refused():
    with pytest.raises(ValueError, match="at least one decision"):
        SearchSpace([])
    with pytest.raises(ValueError, match="two decisions are named 'depth'"):
        SearchSpace([DEPTH, DEPTH])
    with pytest.raises(ValueError, match="'depth', which must come before"):
        SearchSpace([KERNELS[0], DEPTH])
    with pytest.raises(ValueError, match="indexed from 0 to 2"):
        SearchSpace(
            [
                DEPTH,
                Decision(name="k", options=("1",), default=0, conditions=(Condition(decision="depth", options=(3,)),)),
            ]
        )
    with pytest.raises(ValueError, match="at least one option with which"):
        Condition(decision="depth", options=())
    with pytest.raises(ValueError, match="default of 'k'"):
        Decision(name="k", options=("1",), default=1)
    with pytest.raises(ValueError, match="missing \\['kernel1'\\]"):
        SPACE.canonical({"depth": 0, "kernel0": 0, "kernel2": 0})
    with pytest.raises(ValueError, match="'depth' has the options"):
        SPACE.canonical({"depth": 3, "kernel0": 0, "kernel1": 0, "kernel2": 0})


def test_options_by_name_lead_back_to_the_candidate():
    for candidate in SPACE:
        options = SPACE.options_of(candidate)
        assert len(options) == 2 + candidate["depth"]
        assert SPACE.from_options(options) == candidate
    with pytest.raises(ValueError, match="nothing is decided about 'width'"):
        SPACE.from_options({"width": "3"})
    with pytest.raises(ValueError, match=r"'depth' has the options .* got '4'"):
        SPACE.from_options({"depth": "4"})
    with pytest.raises(ValueError, match="option of 'kernel1' is needed"):
        SPACE.from_options({"depth": "2", "kernel0": "3"})
