import pytest
import torch
from by_hand import compare

from lightning_optim.distillation import Huber


def price(difference, delta):
    size = abs(difference)
    return size * size / 2 if size <= delta else delta * (size - delta / 2)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_it_is_a_square_and_then_a_line(delta):
    student = torch.tensor([[-5.0, -delta, -0.1, 0.0], [0.2, delta, delta + 0.5, 9.0]]).requires_grad_()
    prices = [price(value, delta) for value in student.flatten().tolist()]
    found = compare(Huber(delta=delta), student, torch.zeros(2, 4))
    assert found.item() == pytest.approx(sum(prices) / 8, rel=1e-6)
    found.backward()
    torch.testing.assert_close(student.grad, student.detach().clamp(-delta, delta) / 8)


def test_a_mask_leaves_the_mean_of_valid_numbers():
    student, mask = torch.tensor([[1.0, 3.0], [9.0, 9.0]]), torch.tensor([1, 0])
    found = compare(Huber(mask="valid"), student, torch.zeros(2, 2), valid=mask)
    assert float(found) == pytest.approx((0.5 + 2.5) / 2)


def test_equal_outputs_and_half_precision_have_a_finite_gradient():
    student = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    found = compare(Huber(), student, student.detach())
    found.backward()
    assert found.dtype is torch.float32
    assert not student.grad.any()


@pytest.mark.parametrize("delta", [0.0, -1.0, float("inf"), float("nan")])
def test_a_delta_out_of_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be a number above 0"):
        Huber(delta=delta)
