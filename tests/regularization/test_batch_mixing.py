"""What is drawn for a batch is a function of seed, number and rank; whether it is mixed is the same on all ranks."""

import copy
import pickle

import torch

from lightning_optim import BatchMixer, DropoutScheduler
from lightning_optim.regularization import CutMix, Mixup, PresentDropout
from lightning_optim.regularization.batch_mixing import BatchMixing
from lightning_optim.schedule import Linear

BATCH = (torch.arange(64.0).reshape(8, 1, 2, 4), torch.arange(8))


def mixing(kind=None, probability=1.0, seed=0):
    return BatchMixing(kind or Mixup(alpha=1.0), "mix_loss", probability, (), (), seed)


def test_draws_differ_by_number_rank_and_seed_and_are_the_same_again():
    found = {
        (number, rank, seed): mixing(seed=seed).draw(BATCH, number, rank).weight
        for number in range(3)
        for rank in range(2)
        for seed in range(2)
    }
    assert len(set(found.values())) == 12
    assert mixing().draw(BATCH, 1, 1).weight == found[1, 1, 0]


def test_each_kind_that_combines_samples_has_its_turn():
    both, used = mixing({"means": Mixup(alpha=1.0), "boxes": CutMix()}), set()
    for number in range(20):
        x = both.draw(BATCH, number, 0).with_own_labels()[0]
        used.add(bool((x == x.round()).all()))  # a box leaves pixels as they are
    assert used == {True, False}


def test_a_share_of_the_batches_is_mixed():
    half, rising = mixing(probability=0.5), mixing(probability=Linear(start=0.0, end=1.0))
    count = sum(half.is_due(number, 0.0) for number in range(4000))
    assert abs(count / 4000 - 0.5) < 0.03
    assert not any(rising.is_due(number, 0.0) for number in range(100))
    assert all(rising.is_due(number, 1.0) for number in range(100))


def test_callbacks_can_be_copied_and_pickled():
    for callback in (BatchMixer(mixing=CutMix()), DropoutScheduler(dropout=PresentDropout(), probability=0.1)):
        for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301  # our own
            assert twin.state_key == callback.state_key
