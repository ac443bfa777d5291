import itertools

import pytest
import torch

from lightning_optim.cost.knapsack import cheapest_choices


def total(table, chosen):
    return sum(row[place] for row, place in zip(table, chosen, strict=True))


def by_brute_force(costs, losses, budget):
    every = itertools.product(*(range(len(row)) for row in costs))
    return min(total(losses, chosen) for chosen in every if total(costs, chosen) <= budget)


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_within_the_budget_loses_less(seed):
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(1, 20, (5, 4), generator=generator).tolist()
    losses = torch.randint(0, 12, (5, 4), generator=generator).double().tolist()
    least, most = sum(map(min, costs)), sum(map(max, costs))
    for budget in (least, (2 * least + most) // 3, (least + most) // 2, most):
        chosen = cheapest_choices(costs, losses, budget)
        assert total(costs, chosen) <= budget
        assert total(losses, chosen) == by_brute_force(costs, losses, budget)


@pytest.mark.parametrize("most_states", [1, 7, 50])
def test_too_many_states_still_meet_the_budget_and_stay_near_the_best(most_states):
    generator = torch.Generator().manual_seed(0)
    costs = torch.randint(50, 900, (7, 4), generator=generator).sort(1).values.tolist()
    losses = torch.rand(7, 4, generator=generator).sort(1, descending=True).values.tolist()
    budget = (sum(map(min, costs)) + sum(map(max, costs))) // 2
    chosen = cheapest_choices(costs, losses, budget, most_states)
    assert total(costs, chosen) <= budget
    best = by_brute_force(costs, losses, budget)
    assert best <= total(losses, chosen) <= (1.05 * best if most_states == 50 else 7.0)


def test_of_equal_losses_the_cheaper_is_taken():
    assert cheapest_choices([[4, 1, 2]], [[0.0, 0.0, 0.0]], budget=9) == [1]
