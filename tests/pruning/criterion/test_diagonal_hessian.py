import torch

from lightning_optim.pruning import DiagonalHessian, LayerEvidence, Statistic


def test_score_is_half_the_mean_squared_gradient_times_the_squared_weight(problem):
    weight = problem.net[0].weight.detach()
    expected = torch.zeros_like(weight)
    for gradient in problem.gradients:
        for where in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).tolist():
            expected[tuple(where)] += float(gradient[tuple(where)]) ** 2 * float(weight[tuple(where)]) ** 2 / 2 / 3
    score = DiagonalHessian()(problem.seen(DiagonalHessian()))
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-8)


def test_at_the_optimum_of_a_gaussian_model_it_is_the_rise_of_the_loss():
    """There the Fisher matrix is the Hessian: y = w . x + noise of variance one, loss half the squared error."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40000, 2, generator=generator) * torch.tensor([1.0, 3.0])
    noise = torch.randn(40000, generator=generator)
    weight = torch.tensor([[2.0, 0.5]])
    (fisher,) = [need for need in DiagonalHessian().needs if isinstance(need, Statistic)]
    tally = fisher.start()
    per_sample = -noise[:, None] * inputs
    tally.update("w", sum(fisher.term(weight[0], part).unsqueeze(0) for part in per_sample[:4000]), count=4000)
    rise = torch.stack([(inputs[:, k] * weight[0, k]).square().mean() / 2 for k in range(2)])
    seen = LayerEvidence(name="w", weight=weight, totals={fisher: tally.totals["w"]}, counts={fisher: 4000})
    torch.testing.assert_close(DiagonalHessian()(seen)[0], rise, rtol=0.1, atol=0.0)
