"""A torch whose graphs of one class count together."""

import pytest
import torch
from torch import nn
from torch._dynamo import lookup_backend

from lightning_optim.quantization import Affine, MovingAverage, Symmetric
from lightning_optim.quantization.compilation import compiled
from lightning_optim.quantization.simulation.simulator import Simulator


def test_an_older_torch_simulates_in_python_and_says_so(monkeypatch):
    monkeypatch.setattr(compiled, "ISOLATES_GRAPHS", False)
    network, simulator, batch = nn.Linear(3, 2), Simulator(Symmetric(), Affine(), MovingAverage()), torch.randn(4, 3)
    message = rf"Linear is simulated uncompiled: .* 2.13 .* {torch.__version__[:3]}.*; update"
    with pytest.warns(UserWarning, match=message):
        simulation = compiled.CompiledSimulation(simulator, network, lookup_backend("eager"))
    for _ in range(2):
        simulation.run(network.forward, (batch,), {})
        simulator.finish_batch()
    found = simulation.run(network.forward, (batch,), {})
    assert torch.equal(found, simulator.run(network, network.forward, (batch,), {}, fold=False))
