"""Soft targets over the likeliest classes and one bucket of all others, against loops over Python floats."""

import math

import pytest
import torch

from lightning_optim.distillation import Context, Observation, SoftTarget, TopLogits
from lightning_optim.functional import soft_target_loss, top_soft_target_loss


def seeded(*shape, dtype=torch.float64, seed=0):
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(values, temperature):
    exponentials = [math.exp(value / temperature) for value in values]
    return [each / sum(exponentials) for each in exponentials]


def by_hand(student, teacher, k, temperature):
    """The mean divergence, and its gradient in each student logit."""
    total, gradient = 0.0, []
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(mine, temperature), softmax(theirs, temperature)
        top = sorted(range(len(q)), key=lambda c: -q[c])[:k]
        p_rest, q_rest = (sum(each[c] for c in range(len(q)) if c not in top) for each in (p, q))
        total += sum(q[c] * math.log(q[c] / p[c]) for c in top) + q_rest * math.log(q_rest / p_rest)
        gradient.append([p[c] - q[c] if c in top else p[c] * (1.0 - q_rest / p_rest) for c in range(len(q))])
    scale = temperature / len(student)
    return temperature**2 * total / len(student), scale * torch.tensor(gradient, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_loss_and_gradient_are_those_of_the_buckets(k, temperature):
    student, teacher = seeded(5, 7).requires_grad_(), seeded(5, 7, seed=1)
    top = TopLogits.of(teacher, k, [temperature])
    loss = top_soft_target_loss(student, top.indices, top.log_probabilities(temperature), temperature)
    loss.backward()
    expected, gradient = by_hand(student, teacher, k, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(student.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradcheck(temperature):
    top = TopLogits.of(seeded(2, 3, 8, seed=1), 3, [temperature])
    theirs, mask = top.log_probabilities(temperature), torch.tensor([[True, True, False], [True, False, True]])

    def loss(student):
        return top_soft_target_loss(student, top.indices, theirs, temperature, mask=mask)

    assert torch.autograd.gradcheck(loss, seeded(2, 3, 8).requires_grad_())


def test_as_many_buckets_as_classes_are_all_classes():
    student, teacher = seeded(4, 6), seeded(4, 6, seed=1)
    top = TopLogits.of(teacher, 5, [2.0])
    loss = top_soft_target_loss(student, top.indices, top.log_probabilities(2.0), 2.0)
    torch.testing.assert_close(loss, soft_target_loss(student, teacher, 2.0))


def test_classes_that_the_teacher_excludes_add_nothing():
    teacher = torch.tensor([[3.0, 1.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, 1.0, -torch.inf]])
    student = seeded(2, 4, dtype=torch.float32).requires_grad_()
    top = TopLogits.of(teacher, 2, [2.0])
    loss = top_soft_target_loss(student, top.indices, top.log_probabilities(2.0), 2.0)
    loss.backward()
    torch.testing.assert_close(loss, soft_target_loss(student, teacher, 2.0))
    assert student.grad.isfinite().all()


def test_a_sure_teacher_is_as_sure_in_its_buckets():
    teacher = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    theirs = TopLogits.of(teacher, 1, [1.0, 0.1]).log_probabilities(0.1)
    assert theirs[0, 0] == 0.0
    assert top_soft_target_loss(teacher, torch.tensor([[0]]), theirs, 0.1) == 0.0


def test_soft_targets_read_either_and_find_the_axis_of_the_classes():
    student, teacher = seeded(2, 6, 3, 4), seeded(2, 6, 3, 4, seed=1)
    top = TopLogits.of(teacher.movedim(1, -1), 5, [4.0])
    loss, context = SoftTarget(class_dim=1), Context(progress=0.0, batch=None)
    mine = Observation((), {}, student)
    torch.testing.assert_close(
        loss(mine, Observation((), {}, top), context), loss(mine, Observation((), {}, teacher), context)
    )


def test_another_number_of_classes_or_positions_is_refused():
    top = TopLogits.of(seeded(2, 3, 8), 3, [4.0])
    context = Context(progress=0.0, batch=None)
    with pytest.raises(ValueError, match="of 8 classes, the student has 9"):
        SoftTarget(class_dim=-1)(Observation((), {}, seeded(2, 3, 9)), Observation((), {}, top), context)
    with pytest.raises(ValueError, match="all axes but the last must be the same"):
        SoftTarget(class_dim=-1)(Observation((), {}, seeded(2, 4, 8)), Observation((), {}, top), context)
