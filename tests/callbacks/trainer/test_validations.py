import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader, IterableDataset

from lightning_optim.callbacks.trainer.validations import share_before_validation, validations_left
from support import quiet

BATCHES = 6


class Seen(Callback):
    """The share at each batch, and what is left at each validation."""

    def __init__(self):
        self.shares, self.left = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.shares.append(share_before_validation(trainer))

    def on_validation_end(self, trainer, pl_module):
        self.left.append(validations_left(trainer))


def seen(data=None, epochs=2, **settings):
    callback = Seen()
    trainer = quiet(callback, **{"max_epochs": epochs, "num_sanity_val_steps": 0} | settings)
    data = DataLoader(torch.randn(BATCHES, 32)) if data is None else data
    trainer.fit(BoringModel(), data, DataLoader(torch.randn(1, 32)))
    return callback.shares, callback.left


def falling(count):
    return [(count - done) / count for done in range(count)]


@pytest.mark.parametrize(
    ("settings", "shares", "left"),
    [
        ({}, 2 * falling(6), [1, 0]),
        ({"val_check_interval": 0.5}, 4 * falling(3), [3, 2, 1, 0]),
        ({"val_check_interval": 4}, 2 * [*falling(4), 1, 1], [1, 0]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, 3 * falling(4), [2, 1, 0]),
        ({"check_val_every_n_epoch": 2}, falling(12), [0]),
        ({"check_val_every_n_epoch": 2, "val_check_interval": 3}, [*6 * [1], *2 * falling(3)], [1, 0]),
        ({"limit_train_batches": 4}, 2 * falling(4), [1, 0]),
        ({"max_steps": 8, "val_check_interval": 2}, 4 * falling(2), [3, 2, 1, 0]),
        ({"val_check_interval": "00:00:00:00"}, 12 * [1], 12 * [math.inf]),
    ],
)
def test_the_next_validation_is_known_ahead(settings, shares, left):
    said = seen(**settings)
    assert said[0] == pytest.approx(shares)
    assert said[1] == left


def test_of_data_without_a_length_nothing_is_known():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.randn(BATCHES, 32))

    assert seen(DataLoader(Stream())) == (12 * [1.0], 2 * [math.inf])
