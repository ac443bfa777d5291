"""Losses over large logits: the bits of operators on the whole, in the memory of the gradient alone."""

import pytest
import torch
from by_hand import CONTEXT
from torch.autograd import gradcheck, gradgradcheck

from lightning_optim.distillation import GeneralizedJSD, Observation, ReverseKL, SoftTarget
from lightning_optim.distillation.functional import soft_target_divergences
from lightning_optim.distillation.kernel import blocks
from lightning_optim.distillation.kernel.blocks import in_blocks

LOSSES = [
    SoftTarget(temperature=2.0, class_dim=-1, mask="valid"),
    SoftTarget(standardize=True, class_dim=2, mask="valid", reduction="sum"),
    ReverseKL(class_dim=-1, mask="valid"),
    GeneralizedJSD(class_dim=-1, mask="valid"),
]


def rand(*shape, seed=0, dtype=torch.float32):
    return 3.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def step(loss, student, teacher, valid):
    """Value and gradient of a loss."""
    leaf = student.clone().requires_grad_()
    value = loss(Observation((), {"valid": valid}, leaf), Observation((), {}, teacher), CONTEXT)
    return value.detach(), torch.autograd.grad(2.0 * value, leaf)[0]


@pytest.fixture
def taken(monkeypatch):
    """All logits count as large; how often they were taken in blocks."""
    monkeypatch.setattr(blocks, "_LARGE", 1)
    counts = []
    apply = blocks._InBlocks.apply
    monkeypatch.setattr(blocks._InBlocks, "apply", lambda *args: counts.append(1) or apply(*args))
    return counts


@pytest.mark.parametrize("loss", LOSSES, ids=["soft target", "standardized", "reverse", "jsd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_the_same_bits_as_of_the_whole(loss, dtype, monkeypatch):
    student, teacher = rand(2, 60, 3000).to(dtype), rand(2, 60, 3000, seed=1)
    valid = torch.arange(120).view(2, 60) % 7 > 0
    expected = step(loss, student, teacher, valid)
    monkeypatch.setattr(blocks, "_LARGE", 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(loss, student, teacher, valid)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def divergence(student, teacher, dim=-1):
    return soft_target_divergences(student, teacher, 2.0, dim)


def test_gradients_are_those_of_finite_differences_the_second_ones_too(taken):
    teacher = rand(3, 4, seed=1, dtype=torch.float64)
    leaf = rand(3, 4, dtype=torch.float64).requires_grad_()

    def blockwise(logits):
        return in_blocks(divergence, logits, teacher, -1)

    assert gradcheck(blockwise, leaf)
    assert gradgradcheck(blockwise, leaf)
    value = blockwise(leaf).sum()
    first = torch.autograd.grad(value, leaf, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(value, leaf)[0])  # as often as is asked for
    assert taken


def test_transforms_and_compiled_losses_give_what_operators_give(taken):
    student, teacher = rand(5, 3, 4, dtype=torch.float64), rand(5, 3, 4, seed=1, dtype=torch.float64)

    def blockwise(mine, other):
        return in_blocks(divergence, mine, other, -1).sum()

    def plain(mine, other):
        return divergence(mine, other).sum()

    for transform in (torch.func.grad, torch.func.jacrev):
        torch.testing.assert_close(
            transform(blockwise)(student[0], teacher[0]), transform(plain)(student[0], teacher[0])
        )
        each, expected = (torch.vmap(transform(function))(student, teacher) for function in (blockwise, plain))
        torch.testing.assert_close(each, expected)
    assert not taken
    compiled = torch.compile(blockwise, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher), plain(student, teacher))
    assert not taken
    assert blockwise(student, teacher) == plain(student, teacher)
    assert taken
