import math

import pytest
import torch
from by_hand import rand, softmax

from lightning_optim.distillation import DKD, Context, Observation, SoftTarget
from lightning_optim.errors import SampleError


def compare(loss, student, teacher, batch):
    return loss(Observation((), {}, student), Observation((), {}, teacher), Context(progress=0.0, batch=batch))


def kl(first, second):
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def by_hand(student, teacher, labels, temperature, alpha, beta):
    total = 0.0
    for mine, theirs, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(mine, temperature), softmax(theirs, temperature)
        target = kl([q[label], 1 - q[label]], [p[label], 1 - p[label]])
        others = [[value / (1 - each[label]) for c, value in enumerate(each) if c != label] for each in (q, p)]
        total += alpha * target + beta * kl(*others)
    return temperature**2 * total / len(labels)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(1.0, 1.0, 0.0), (4.0, 0.0, 1.0), (4.0, 1.0, 8.0)])
def test_it_is_the_formula_of_the_paper(temperature, alpha, beta):
    student, teacher, labels = rand(5, 4), rand(5, 4, seed=1), torch.tensor([0, 3, 1, 2, 3])
    found = compare(DKD(temperature=temperature, alpha=alpha, beta=beta), student, teacher, (None, labels))
    assert float(found) == pytest.approx(by_hand(student, teacher, labels, temperature, alpha, beta), rel=1e-5)


def test_with_the_teachers_own_weight_it_is_the_soft_target_loss():
    student, teacher, labels = rand(1, 4), rand(1, 4, seed=1), torch.tensor([2])
    rest = 1.0 - float((teacher / 4.0).softmax(1)[0, 2])
    found = compare(DKD(alpha=1.0, beta=rest), student, teacher, [None, labels])
    torch.testing.assert_close(found, compare(SoftTarget(), student, teacher, None))


@pytest.mark.parametrize(
    ("labels", "batch"),
    [("y", {"x": 0, "y": torch.tensor([1, 0])}), (None, torch.tensor([1, 0])), ("0.y", [{"y": torch.tensor([1, 0])}])],
)
def test_labels_are_found_in_the_batch(labels, batch):
    student, teacher = rand(2, 3), rand(2, 3, seed=1)
    expected = compare(DKD(), student, teacher, (None, torch.tensor([1, 0])))
    assert torch.equal(compare(DKD(labels=labels), student, teacher, batch), expected)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"y": torch.tensor([1, 0])}, r"integer labels of shape \[2\].* the batch is \['y'\]: set labels"),
        (torch.zeros(2, 2), "the batch is a Tensor"),
        ((None, torch.zeros(2)), r"found torch.float32 of shape \[2\]"),
        ((None, torch.zeros(2, 3)), "SoftTarget"),
        ((None, torch.zeros(2, 1, dtype=torch.long)), r"torch.int64 of shape \[2, 1\]"),
        ((None, torch.tensor([0, 3])), "from 0 to 2, but one of them is outside"),
        ((None, torch.tensor([0, -100])), "from 0 to 2"),
    ],
)
def test_what_are_no_integer_labels_is_refused(batch, says):
    with pytest.raises(SampleError, match=says):
        compare(DKD(), rand(2, 3), rand(2, 3, seed=1), batch)


def test_logits_of_tokens_are_refused():
    with pytest.raises(ValueError, match=r"needs logits \[B, C\], got shape \[2, 3, 4\]"):
        compare(DKD(class_dim=-1), rand(2, 3, 4), rand(2, 3, 4), (None, torch.tensor([0, 1])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("student", [rand(3, 4), torch.zeros(3, 4), 60.0 * torch.eye(3, 4)])
def test_gradients_are_finite(student, dtype):
    student, labels = student.to(dtype).clone().requires_grad_(), torch.tensor([0, 1, 3])
    for teacher in (student.detach(), 50.0 * rand(3, 4, seed=1).to(dtype)):
        found = compare(DKD(temperature=1.0), student, teacher, (None, labels))
        found.backward()
        assert found.dtype is torch.float32
        assert found.isfinite()
        assert student.grad.isfinite().all()


def test_two_classes_leave_the_part_about_the_label():
    student, teacher, labels = rand(3, 2), rand(3, 2, seed=1), torch.tensor([0, 1, 1])
    found = compare(DKD(), student, teacher, (None, labels))
    torch.testing.assert_close(found, compare(SoftTarget(), student, teacher, None))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"alpha": -1.0}, {"beta": float("nan")}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DKD(**settings)
