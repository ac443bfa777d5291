import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_optim.quantization.simulation.operators import NO_KERNEL, Role, classify


class Classifier(TorchFunctionMode):
    """Classifies what runs while it is entered."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.found.append(classify(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def classified(run):
    with Classifier() as classifier:
        run()
    return classifier.found[0]


IMAGE, MATRIX, VECTOR = torch.ones(2, 3, 4, 4), torch.ones(3, 3), torch.ones(3)
CALLS = {
    "conv2d": (lambda: functional.conv2d(IMAGE, IMAGE), Role.CONVOLUTION),
    "linear": (lambda: functional.linear(MATRIX, MATRIX), Role.LINEAR),
    "matmul": (lambda: torch.matmul(MATRIX, MATRIX), Role.MATMUL),
    "add": (lambda: torch.add(MATRIX, MATRIX), Role.ADD),
    "mean": (lambda: IMAGE.mean((2, 3)), Role.POOL),
    "cat": (lambda: torch.cat([MATRIX, MATRIX]), Role.CONCATENATE),
    "relu": (lambda: functional.relu(MATRIX), Role.RELU),
    "batch_norm": (lambda: functional.batch_norm(IMAGE, VECTOR, VECTOR), Role.NORM),
    "view": (lambda: MATRIX.view(9), Role.MOVE),
    "mT": (lambda: MATRIX.mT, Role.MOVE),
    "size": (MATRIX.size, Role.INSPECT),
    "__get__": (lambda: MATRIX.shape, Role.INSPECT),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_integers_serve_or_that_computes_nothing_gives_no_reason(name):
    run, role = CALLS[name]
    assert classified(run) == (name, role, False, "")


@pytest.mark.parametrize("run", [lambda: torch.erf(MATRIX), lambda: torch.ops.aten.sin(MATRIX)])
def test_what_no_role_names_computes_in_floating_point(run):
    assert classified(run)[1:] == (Role.OTHER, False, NO_KERNEL)


def test_a_reason_that_lies_in_the_arguments_leaves_the_role_as_it_is():
    found = classified(lambda: torch.add(MATRIX, MATRIX, alpha=2))
    assert (found.role, found.why_float) == (Role.ADD, "it multiplies an operand")


def add_to_itself(x):
    x += x


def assign(x):
    x[0] = 0.0


@pytest.mark.parametrize(
    ("run", "is_in_place"),
    [
        (lambda x: x.add_(x), True),
        (lambda x: x.sigmoid_(), True),
        (add_to_itself, True),
        (lambda x: functional.relu(x, inplace=True), True),
        (lambda x: functional.silu(x, inplace=True), True),
        (torch.ops.aten.sin_.default, True),
        (lambda x: functional.relu(x, inplace=False), False),
        (lambda x: x + x, False),
        (assign, False),  # a role of its own: it changes part of its first argument
    ],
)
def test_a_call_changes_its_first_argument_by_its_name_or_by_a_keyword(run, is_in_place):
    x = MATRIX.clone()
    assert classified(lambda: run(x)).is_in_place is is_in_place
