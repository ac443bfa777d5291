import pytest

from lightning_optim.nas import ProgressiveShrinking
from support import three_choices


def test_a_decision_keeps_the_own_option_until_it_opens_and_is_drawn_from_then_on():
    supernet = three_choices(3)
    state = ProgressiveShrinking(opens={"1:*": 0.25, "2:operation": 0.5}).start(supernet, 0)
    seen = {
        progress: [{path.architecture[name] for step in range(30) for path in state.paths(step, progress)}
                   for name in ("0:operation", "1:operation", "2:operation")]
        for progress in (0.0, 0.25, 0.5)
    }  # fmt: skip
    every = {0, 1, 2}
    assert seen == {0.0: [every, {0}, {0}], 0.25: [every, every, {0}], 0.5: [every, every, every]}


def test_the_first_glob_that_matches_counts():
    state = ProgressiveShrinking(opens={"0:*": 0.9, "*": 0.1}).start(three_choices(3), 0)
    assert {path.architecture["0:operation"] for step in range(30) for path in state.paths(step, 0.5)} == {0}


def test_a_glob_that_matches_nothing_and_a_progress_outside_the_fit_are_refused():
    with pytest.raises(ValueError, match=r"opens\['\*:width'\] matches no decision: this space has 0:operation"):
        ProgressiveShrinking(opens={"*:width": 0.5}).start(three_choices(3), 0)
    with pytest.raises(ValueError, match=r"opens\['\*'\] is a progress of the fit"):
        ProgressiveShrinking(opens={"*": 1.5})
    with pytest.raises(ValueError, match="got no entry"):
        ProgressiveShrinking(opens={})
