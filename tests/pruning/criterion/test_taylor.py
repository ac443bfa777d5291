import pytest
import torch

from lightning_optim.pruning import LayerEvidence, Taylor


def test_score_is_the_mean_squared_slope_of_the_loss_by_a_factor_of_each_weight(problem):
    expected = sum(problem.slopes(step).square() for step in range(3)) / 3
    torch.testing.assert_close(Taylor()(problem.seen(Taylor())), expected, rtol=1e-6, atol=1e-10)


def test_over_a_channel_all_its_weights_have_one_factor(problem):
    criterion = Taylor(over="channel")
    slopes = [[problem.slope(step, channel) for channel in range(3)] for step in range(3)]
    expected = torch.tensor(slopes, dtype=torch.float64).square().mean(0)
    torch.testing.assert_close(criterion(problem.seen(criterion)), expected, rtol=1e-6, atol=1e-10)


def test_the_least_of_the_scores_is_the_weight_that_the_loss_misses_least():
    """A linear loss has no other terms: the score is the squared change of the loss itself."""
    weight, gradient = torch.tensor([[3.0, 0.1, -1.0]]), torch.tensor([[0.1, 2.0, 1.0]])
    (statistic,) = Taylor().needs
    term = statistic.term(weight, gradient)
    change = torch.stack([(weight * gradient).sum() - (weight * gradient * keep).sum() for keep in 1 - torch.eye(3)])
    seen = LayerEvidence(name="w", weight=weight, totals={statistic: term}, counts={statistic: 1})
    torch.testing.assert_close(Taylor()(seen)[0], change.square())


def test_another_way_to_go_to_zero_is_refused():
    with pytest.raises(ValueError, match="over must be 'weight' or 'channel', got 'layer'"):
        Taylor(over="layer")


def test_gradients_that_were_not_seen_are_named():
    with pytest.raises(ValueError, match=r"squared weight times gradient of conv\.weight is needed.*targets\.exclude"):
        Taylor()(LayerEvidence(name="conv.weight", weight=torch.ones(1)))
