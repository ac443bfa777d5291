import torch

from lightning_optim.pruning import LayerEvidence, Movement


def test_score_is_the_negative_sum_of_all_slopes(problem):
    expected = -sum(problem.slopes(step) for step in range(3))
    torch.testing.assert_close(Movement()(problem.seen(Movement())), expected, rtol=1e-6, atol=1e-10)


def test_weights_that_shrink_score_below_zero_and_those_that_grow_above():
    (movement,) = Movement().needs
    weight, goal = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([3.0, 0.0, -3.0, 0.0])
    tally = movement.start()
    for _ in range(4):
        gradient = weight - goal
        tally.update("w", movement.term(weight, gradient))
        weight = weight - 0.1 * gradient
    score = Movement()(
        LayerEvidence(name="w", weight=weight, totals={movement: tally.totals["w"]}, counts={movement: 4})
    )
    assert (score > 0).tolist() == [True, False, True, False]


def test_sum_goes_on_over_pruning_steps():
    (movement,) = Movement().needs
    assert not movement.resets_at_step
