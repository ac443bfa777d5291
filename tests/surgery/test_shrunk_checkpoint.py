import pytest
import torch
from torch import nn

from lightning_optim.surgery.shrunk_checkpoint import MARK, cuts_in, mark_shrunk, remove_mark

CUT = {"weight": [[0, torch.tensor([1]), 2]]}


def test_the_error_of_a_strict_load_names_what_reads_the_file():
    checkpoint = {"state_dict": nn.Linear(3, 1).state_dict()}
    mark_shrunk(checkpoint, "pruning", CUT)
    with pytest.raises(RuntimeError, match=r"lightning_optim\.pruning\.load_pruned\(model, path\)"):
        nn.Linear(3, 2).load_state_dict(checkpoint["state_dict"])
    remove_mark(checkpoint)
    nn.Linear(3, 1).load_state_dict(checkpoint["state_dict"])


def test_a_file_from_which_nothing_was_removed_has_no_mark():
    checkpoint = {"state_dict": {}}
    mark_shrunk(checkpoint, "pruning", {})
    assert checkpoint == {"state_dict": {}}


def test_the_record_of_the_cut_goes_where_no_callbacks_state_has_it():
    whole, alone = {"state_dict": {}, "callbacks": {"pruning": {"cut": CUT}}}, {"state_dict": {}}
    for checkpoint in (whole, alone):
        mark_shrunk(checkpoint, "pruning", CUT)
        assert cuts_in(checkpoint) == {"pruning": CUT}
    assert len(whole) == 2
    assert not cuts_in({"callbacks": {"pruning": {"cut": CUT}}})  # no Trainer's checkpoint


def test_both_sets_of_weights_of_an_averaging_callback_lose_the_mark():
    checkpoint = {"state_dict": {MARK: 1, "a": 2}, "current_model_state": {MARK: 1}, "epoch": 3}
    remove_mark(checkpoint)
    assert checkpoint == {"state_dict": {"a": 2}, "current_model_state": {}, "epoch": 3}
