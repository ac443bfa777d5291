import pytest

from lightning_optim.pruning.until.metric_drop import Verdict
from lightning_optim.pruning.until.search import SparsitySearch
from lightning_optim.schedule import Linear, Steps

GOOD, REST, BACK = Verdict.GOOD, Verdict.REST, Verdict.BACK


def landed(limit, tolerance, first=0.8):
    """Try again and again against a known limit; every sparsity tried, and the last good one."""
    search, good, tried = SparsitySearch(Steps(values=(first,)), tolerance), 0.0, []
    while not search.is_over(0.5, good):
        tried.append(search.next_sparsity(0.5, good))
        search.note_step(tried[-1])
        is_good = tried[-1] <= limit
        search.judge(GOOD if is_good else BACK, 0.5, tried[-1], good)
        good = tried[-1] if is_good else good
    return tried, good


@pytest.mark.parametrize("limit", [0.05, 0.31, 0.5, 0.7999])
@pytest.mark.parametrize("tolerance", [0.1, 0.01])
def test_it_lands_below_the_limit_by_less_than_the_tolerance(limit, tolerance):
    tried, good = landed(limit, tolerance)
    assert limit - tolerance - 1e-6 <= good <= limit
    gap = 0.8 / 2 ** (len(tried) - 1)  # each attempt after the first halves it
    assert gap <= tolerance + 1e-6 < 2 * gap


def test_what_is_good_ends_it_at_once():
    assert landed(0.9, 0.01) == ([0.8], 0.8)


def test_a_tolerance_of_one_tries_nothing_less():
    assert landed(0.5, 1.0) == ([0.8], 0.0)


def test_nothing_is_tried_before_the_last_step_is_judged():
    search = SparsitySearch(Linear(end=0.8), 0.01)
    search.note_step(0.2)
    assert search.next_sparsity(0.5, 0.2) == 0.2
    search.judge(GOOD, 0.5, 0.2, 0.0)
    assert search.follows_schedule
    assert search.next_sparsity(0.5, 0.2) == 0.4


def test_the_schedules_end_comes_with_the_windows_judged_or_not():
    search = SparsitySearch(Linear(end=0.8), 0.01)
    search.note_step(0.2)
    assert search.next_sparsity(0.99, 0.2) == 0.2
    assert search.next_sparsity(1.0, 0.2) == 0.8
    search.note_step(0.8)
    search.judge(BACK, 1.0, 0.8, 0.0)
    assert search.next_sparsity(1.0, 0.0) == 0.4


def test_a_rest_holds_the_schedule_back_for_as_long_as_it_lasts():
    search = SparsitySearch(Linear(end=1.0), 0.01)
    search.note_step(0.3)
    for progress in (0.3, 0.4, 0.5):
        search.judge(REST, progress, 0.3, 0.0)
        assert search.is_resting
        assert not search.follows_schedule
        assert search.next_sparsity(progress, 0.3) == 0.3
    search.judge(GOOD, 0.6, 0.3, 0.0)
    assert search.next_sparsity(0.6, 0.3) == 0.3
    assert search.next_sparsity(0.7, 0.3) == pytest.approx(0.4)
    assert search.next_sparsity(1.0, 0.3) == pytest.approx(0.7)


def test_what_is_left_of_the_schedule_comes_after_its_window_a_step_for_each_validation():
    search = SparsitySearch(Linear(end=1.0), 0.01)
    search.note_step(0.4)
    search.judge(REST, 0.4, 0.4, 0.0)
    search.judge(GOOD, 0.8, 0.4, 0.0)
    tried = [0.4]
    while not search.is_over(1.0, tried[-1]):
        tried.append(search.next_sparsity(1.0, tried[-1]))
        search.note_step(tried[-1])
        search.judge(GOOD, 1.0, tried[-1], tried[-2])
    assert tried == pytest.approx([0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("pace", [0.5, 0.75, 1.0])
def test_the_schedule_is_followed_at_the_pace_that_is_given(pace):
    search, reached, tried = SparsitySearch(Linear(end=1.0), 0.01), 0.0, []
    for progress in (0.1, 0.2, 0.3, 0.4):
        search.judge(GOOD, progress, reached, reached, pace)
        reached = search.next_sparsity(progress, reached)
        search.note_step(reached)
        tried.append(reached)
    assert tried == pytest.approx([pace * step / 10 for step in (1, 2, 3, 4)])


def test_no_pace_makes_up_for_stretches_of_unequal_length():
    search = SparsitySearch(Linear(end=1.0), 0.01)
    search.judge(GOOD, 0.4, 0.0, 0.0)
    search.judge(GOOD, 0.5, 0.0, 0.0)
    assert search.next_sparsity(0.5, 0.0) == pytest.approx(0.5)


def test_a_fall_long_after_the_last_step_bounds_nothing():
    search = SparsitySearch(Linear(end=0.8), 0.01)
    search.note_step(0.2)
    search.judge(GOOD, 0.25, 0.2, 0.0)
    search.judge(BACK, 0.25, 0.2, 0.2)
    assert not search.has_failed
    assert search.next_sparsity(0.5, 0.2) == 0.4


def test_less_is_tried_after_the_window_too():
    search = SparsitySearch(Linear(end=0.8), 0.01)
    search.note_step(0.8)
    search.judge(BACK, 1.0, 0.8, 0.6)
    assert search.next_sparsity(1.0, 0.6) == pytest.approx(0.7)
    assert not search.is_over(1.0, 0.6)
    assert search.is_over(1.0, 0.79)


def test_more_than_half_the_way_is_tried_where_little_was_missing():
    search = SparsitySearch(Linear(end=0.8), 0.01)
    search.note_step(0.8)
    search.judge(BACK, 0.5, 0.8, 0.0)
    assert search.next_sparsity(0.5, 0.0, share=0.75) == pytest.approx(0.6)


def test_a_schedule_that_falls_again_is_not_over_at_its_last_value():
    search = SparsitySearch(Steps(values=(0.5, 0.8, 0.5)), 0.01)
    assert not search.is_over(0.1, 0.5)
    assert search.is_over(0.7, 0.5)


def test_it_goes_on_from_its_state():
    whole = SparsitySearch(Linear(end=0.8), 0.01)
    for verdict, progress, reached, good in ((REST, 0.2, 0.3, 0.1), (BACK, 0.4, 0.3, 0.1), (REST, 0.5, 0.2, 0.1)):
        whole.note_step(reached)
        whole.judge(verdict, progress, reached, good)
    resumed = SparsitySearch(Linear(end=0.8), 0.01)
    resumed.load_state_dict(whole.state_dict())
    for search in (whole, resumed):
        search.judge(GOOD, 0.6, 0.2, 0.1)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.next_sparsity(0.7, 0.2) == whole.next_sparsity(0.7, 0.2) == pytest.approx(0.25)
