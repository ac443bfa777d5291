import math

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import PKT
from lightning_optim.errors import SampleError


def probabilities(rows):
    found = []
    for i, first in enumerate(rows):
        others = []
        for j, second in enumerate(rows):
            if i != j:
                product = sum(a * b for a, b in zip(first, second, strict=True))
                others.append((product / (math.hypot(*first) * math.hypot(*second)) + 1) / 2)
        found.append([value / sum(others) for value in others])
    return found


def test_it_is_the_formula_over_other_samples():
    student, teacher = rand(5, 3), rand(5, 4, seed=1)
    total = 0.0
    for mine, theirs in zip(probabilities(student.tolist()), probabilities(teacher.tolist()), strict=True):
        total += sum(q * math.log(q / p) for p, q in zip(mine, theirs, strict=True))
    assert float(PKT(student="a").compare(student, teacher, None)) == pytest.approx(total / 5, rel=1e-4)


def test_size_and_rotation_are_no_matter():
    teacher = rand(6, 3)
    turned = 7.0 * teacher @ torch.linalg.qr(rand(3, 3, seed=1))[0]
    assert float(PKT(student="a").compare(turned, teacher, None)) == pytest.approx(0.0, abs=1e-6)


def test_opposite_samples_have_a_finite_loss():
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    PKT(student="a").compare(student, rand(3, 4), None).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_in_which_no_sample_has_two_others_is_refused(size):
    with pytest.raises(SampleError, match=f"PKT compares samples with each other and needs at least 3.*got {size}"):
        PKT(student="a").compare(rand(size, 3), rand(size, 3, seed=1), None)
