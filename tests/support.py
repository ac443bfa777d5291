"""What many tests need alike."""

import copy
import os
import subprocess
import sys

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_optim.graph.branches import residual_branches
from lightning_optim.graph.capture import capture
from lightning_optim.graph.coupling import couple


def quiet(*callbacks, **settings):
    """A Trainer on one CPU that writes nothing anywhere, with settings of the test's own."""
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), **silent | plain | settings)


def same(left, right):
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(one, other) for one, other in zip(left, right, strict=True))
    return left == right


def run_script(name, *arguments, cwd, timeout=280):
    """Run a Python file in a process of its own, as ``torchrun`` would be: one thread, the same import path."""
    done = subprocess.run(
        [sys.executable, str(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


class ReadsItsWeight(nn.Module):
    """A residual block whose code reads a weight of its branch: the branch cannot be taken out."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + self.layer(x.to(self.layer.weight.dtype))


def branches_of(net, batch):
    return residual_branches(couple(capture(net, (batch,))))


def without(net, branch):
    """The network with all of a branch's parameters zeroed."""
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name in branch.parameters:
            twin.get_parameter(name).zero_()
    return twin
