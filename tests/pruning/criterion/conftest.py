"""A small regression, its loss under a factor before any weight, and what a criterion sees of its gradients."""

import pytest
import torch
from torch import nn

from lightning_optim.pruning import Evidence, LayerEvidence, Statistic

STEPS, STEP_SIZE = 3, 0.05


class Problem:
    """Two layers in float64, gone along their gradient for three batches."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)).double()
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
        self.batches = torch.randn(STEPS, 5, 2, 4, generator=generator, dtype=torch.float64)
        self.answers = torch.randn(STEPS, 5, 2, generator=generator, dtype=torch.float64)
        self.weights, self.gradients, self.models = [], [], []
        for step in range(STEPS):
            self.net.zero_grad()
            self.loss(step).backward()
            self.models.append({name: value.clone() for name, value in self.net.state_dict().items()})
            self.weights.append(self.net[0].weight.detach().clone())
            self.gradients.append(self.net[0].weight.grad.clone())
            for parameter in self.net.parameters():
                parameter.data -= STEP_SIZE * parameter.grad

    def loss(self, step):
        return (self.net(self.batches[step]) - self.answers[step]).square().mean()

    def slope(self, step, where):
        """Derivative of a step's loss by a factor before ``weight[where]``, by central differences."""
        self.net.load_state_dict(self.models[step])
        weight, losses = self.net[0].weight.data, []
        whole = weight.clone()
        for factor in (1 + 1e-4, 1 - 1e-4):
            weight.copy_(whole)
            weight[where] *= factor
            losses.append(self.loss(step).item())
        weight.copy_(whole)
        return (losses[0] - losses[1]) / 2e-4

    def slopes(self, step):
        found = torch.zeros(3, 2, 2, dtype=torch.float64)
        for where in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).tolist():
            found[tuple(where)] = self.slope(step, tuple(where))
        return found

    def seen(self, criterion):
        """What the criterion would be shown after the three steps."""
        totals, counts = {}, {}
        for statistic in criterion.needs:
            if isinstance(statistic, Statistic):
                assert statistic.of is Evidence.GRADIENT
                tally = statistic.start()
                for weight, gradient in zip(self.weights, self.gradients, strict=True):
                    tally.update("0.weight", statistic.term(weight, gradient))
                totals[statistic], counts[statistic] = tally.totals["0.weight"], tally.counts["0.weight"]
        return LayerEvidence(name="0.weight", weight=self.net[0].weight.detach(), totals=totals, counts=counts)


@pytest.fixture
def problem():
    return Problem()
