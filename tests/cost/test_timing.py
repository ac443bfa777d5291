import gc

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
