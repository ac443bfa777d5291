import pytest
import torch

from lightning_optim.quantization.rounding.fake_quantize import fake_quantize
from lightning_optim.quantization.simulation.overwriting import Overwriting


@pytest.fixture
def leaf():
    return torch.tensor([0.3, 9.0], requires_grad=True)


def rounded(x):
    return fake_quantize(x, torch.tensor(0.5), None, -8, 7)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"view": (1, x.view(1, 2))}])
def test_a_tensor_that_may_be_overwritten_has_the_gradient_of_its_old_values(leaf, wrap):
    x, overwriting = 2.0 * leaf, Overwriting()
    y = rounded(x)
    overwriting.note(x, y)
    overwriting.allow(wrap(x))
    x.zero_()
    y.sum().backward()
    assert leaf.grad.tolist() == [2.0, 0.0]


def test_a_tensor_that_was_not_allowed_is_refused_by_the_backward(leaf):
    x, overwriting = 2.0 * leaf, Overwriting()
    y = rounded(x)
    overwriting.note(x, y)
    overwriting.allow(torch.zeros(2))
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_tensor_is_noted_only_if_the_backward_needs_it(leaf):
    overwriting = Overwriting()
    overwriting.note(leaf, rounded(leaf.detach()))
    overwriting.note(leaf, 2.0 * leaf)
    assert not overwriting.saved_by_backward
    overwriting.note(leaf, rounded(leaf))
    assert len(overwriting.saved_by_backward) == 1
    overwriting.allow(leaf)
    assert not overwriting.saved_by_backward
