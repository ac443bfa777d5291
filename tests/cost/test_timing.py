import gc
import warnings

import pytest
import torch

import lightning_optim.cost.timing
from lightning_optim.cost.timing import time_call


def test_four_times_the_work_takes_about_four_times_as_long():
    small, large = torch.ones(96, 96), torch.ones(384, 96)
    ratio = time_call(lambda: large @ small) / time_call(lambda: small @ small)
    assert 2.0 < ratio < 8.0


def test_threads_and_garbage_collection_are_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        time_call(lambda: torch.ones(8), rounds=3)
        assert torch.get_num_threads() == 2
        assert gc.isenabled()
    finally:
        torch.set_num_threads(threads)


def test_what_fails_leaves_everything_as_before():
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        time_call(lambda: 1 / 0)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds"):
        time_call(lambda: None, rounds=2)


def test_all_calls_of_a_process_are_on_one_scale():
    time_call(lambda: None, rounds=3)
    scale = lightning_optim.cost.timing._reference_seconds()
    assert scale > 0.0
    time_call(lambda: None, rounds=3)
    assert lightning_optim.cost.timing._reference_seconds() == scale


class Shared:
    """What stands for the pace: a neighbour shares the core at these readings, and doubles what a call takes."""

    is_known = True

    def __init__(self, shared):
        self.shared, self.count = shared, -1

    def read(self):
        self.count += 1
        return 2.0 if self.shared(self.count) else 1.0

    def is_calm(self, reading):
        return reading < 1.5


def paced(monkeypatch, shared):
    pace = Shared(shared)
    monkeypatch.setattr(lightning_optim.cost.timing, "process_pace", lambda: pace)

    def call():
        sum(range(40_000 if shared(pace.count) or shared(pace.count + 1) else 10_000))

    return call


def test_samples_of_moments_in_which_a_neighbour_shares_the_core_are_left_out(monkeypatch):
    calm = time_call(lambda: sum(range(10_000)))
    call = paced(monkeypatch, lambda count: count > 3 and count % 4 < 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert time_call(call, rounds=12) == pytest.approx(calm, rel=0.4)


def test_where_the_neighbour_never_leaves_measuring_ends_and_says_so(monkeypatch):
    call = paced(monkeypatch, lambda _: True)
    with pytest.warns(UserWarning, match="a latency may be too long: other work shared the processor's core"):
        assert time_call(call, rounds=3) > 0.0
