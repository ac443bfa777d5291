"""What many tests need alike."""

import contextlib
import copy
import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional

from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.branches import residual_branches
from lightning_optim.quantization import Affine, MinMax, MovingAverage, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.torch_private import ISOLATES_GRAPHS

needs_graphs_of_its_own = pytest.mark.skipif(
    not ISOLATES_GRAPHS, reason=f"torch.compile keeps no graphs apart (torch 2.13 does, this is {torch.__version__})"
)


def quiet(*callbacks, **settings):
    """A Trainer on one CPU that writes nothing anywhere, with settings of the test's own."""
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), **silent | plain | settings)


def three_choices(num_options):
    """A supernet of three linear layers, each of which may be one of other linear layers."""
    from lightning_optim import Targets
    from lightning_optim.nas import OperationChoice
    from lightning_optim.nas.space.base import Site
    from lightning_optim.nas.supernet import build_supernet

    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    others = {f"other{number}": nn.Linear(4, 4) for number in range(1, num_options)}
    choice = OperationChoice(targets=Targets(include=["0", "1", "2"]), candidates=others)
    return build_supernet(Site(root=net, network="", args=(torch.ones(2, 4),)), {"choice": choice})


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
    """Run a Python file in a process of its own, as ``torchrun`` would be: one thread, the same import path.

    What a process group in this process has left in the environment is not handed on: its port may still be in use.
    What the script and its ranks have said is shown where the test fails: a rank may end in an error of its own.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    command = [sys.executable, str(name), *map(str, arguments)]
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **pipes)
    ended = True
    try:
        said = process.communicate(timeout=timeout)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its ranks too, which would wait for each other
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        said, ended = process.communicate(), False
    for text, stream in zip(said, (sys.stdout, sys.stderr), strict=True):
        stream.write(text)
    assert ended, f"{name} had not ended after {timeout} s"
    assert process.returncode == 0, f"exit status {process.returncode}: {said[1][-3000:]}"
    return subprocess.CompletedProcess(command, process.returncode, *said)


class ReadsItsWeight(nn.Module):
    """A residual block whose code reads a weight of its branch: the branch cannot be taken out."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + self.layer(x.to(self.layer.weight.dtype))


class PooledSums(nn.Module):
    """A sum in place, parts of two ranges side by side, pooling over the image, dropout and a folded batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(16, 4)
        self.drop = nn.Dropout(0.1)

    def forward(self, image):
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(image))), 2)
        y = self.left(x)
        y += x
        y = torch.cat([functional.relu(y, inplace=True), self.right(x)], 1)
        return self.fc(self.drop(functional.adaptive_avg_pool2d(y, 1).flatten(1)))


def branches_of(net, batch):
    return residual_branches(couple(capture_network(net, (batch,))))


def without(net, branch):
    """The network with all of a branch's parameters zeroed."""
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name in branch.parameters:
            twin.get_parameter(name).zero_()
    return twin


def calibrated(net, batches, weight):
    """A simulator that knows a network's operators and ranges."""
    simulator = Simulator(weight, Affine(), MinMax())
    run_calibration(simulator, net, batches)
    return simulator


def observe(simulator, net, *args, steps=3, **kwargs):
    """Let a simulator see the same batch some times."""
    with simulator.observing():
        for _ in range(steps):
            simulator.run(net, net.forward, args, kwargs)
            simulator.finish_batch()


def bright_corners(count):
    """Images of 8 x 8 with one bright quarter, which is their class."""
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 4, (count,), generator=generator)
    x = 0.4 * torch.randn(count, 1, 8, 8, generator=generator)
    for index, each in enumerate(label.tolist()):
        x[index, 0, 4 * (each // 2) : 4 * (each // 2) + 4, 4 * (each % 2) : 4 * (each % 2) + 4] += 0.6
    return x, label


def train_simulated(net, steps=40, excluded=(), weight=None):
    """Train a network on bright corners as its integer form computes, and return what was learned of that form."""
    simulator = Simulator(weight or Symmetric(), Affine(), MovingAverage())
    simulator.place(frozenset(excluded), {})
    x, y = bright_corners(32 * steps)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step, (batch, label) in enumerate(zip(x.split(32), y.split(32), strict=True)):
        with simulator.observing():
            out = simulator.run(net, net.forward, (batch,), {}, fold=step > steps // 2)
        loss = functional.cross_entropy(out, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        simulator.finish_batch()
    return simulator


def exported_classifier():
    """A captured classifier of images of 3 x 6 x 6, for any batch; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    return torch.export.export(net, (torch.ones(4, 3, 6, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def write_linear_onnx(path, linear, batch="batch", flatten=True):
    """Write an ONNX file of a linear layer, by itself or after its input is flattened."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Flatten", ["x"], ["flat"])] if flatten else []
    nodes.append(helper.make_node("Gemm", ["flat" if flatten else "x", "w", "b"], ["logits"], transB=1))
    weights = [
        onnx.numpy_helper.from_array(value.detach().numpy(), name)
        for name, value in zip("wb", linear.parameters(), strict=True)
    ]
    shape = [batch, "c", "h", "w"] if flatten else [batch, linear.in_features]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("logits", kind, [batch, linear.out_features])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
