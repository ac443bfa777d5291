import torch

from lightning_optim.pruning import SNIP


def test_score_is_the_size_of_the_mean_slope(problem):
    expected = (sum(problem.slopes(step) for step in range(3)) / 3).abs()
    torch.testing.assert_close(SNIP()(problem.seen(SNIP())), expected, rtol=1e-6, atol=1e-10)


def test_order_is_that_of_the_papers_share_of_all_sensitivities(problem):
    score = SNIP()(problem.seen(SNIP())).flatten()
    slope = sum(problem.slopes(step) for step in range(3)).flatten()
    share = slope.abs() / slope.abs().sum()
    assert torch.equal(score.argsort(), share.argsort())
