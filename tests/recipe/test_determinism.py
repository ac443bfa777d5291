import random

import numpy as np
import torch

from lightning_optim.recipe.determinism import seed_everything, seed_of


def test_a_seed_is_the_same_in_every_process():
    assert seed_of(0, "base", 1) == 796290994


def test_seeds_of_stages_and_epochs_differ():
    seeds = {seed_of(seed, stage, epoch) for seed in range(5) for stage in ("base", "prune") for epoch in range(50)}
    assert len(seeds) == 500


def test_parts_do_not_run_into_each_other():
    assert seed_of(1, "1a") != seed_of(11, "a") != seed_of("11", "a")


def test_seeds_fit_every_generator():
    assert all(0 <= seed_of(part) < 2**31 for part in range(100))


def test_all_three_generators_repeat():
    def draw():
        seed_everything(0, "stage", 3)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()
