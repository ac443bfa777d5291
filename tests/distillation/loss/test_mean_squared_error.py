import pytest
import torch
from by_hand import compare

from lightning_optim.distillation import MeanSquaredError


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(5,), (4, 1), (2, 3, 4), (2, 3, 4, 5)])
def test_it_is_the_mean_of_squares_in_every_shape(shape):
    student, teacher = rand(*shape), rand(*shape) * 0.3 + 1.0
    squares = [(s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert float(compare(MeanSquaredError(), student, teacher)) == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert float(compare(MeanSquaredError(reduction="sum"), student, teacher)) == pytest.approx(sum(squares), rel=1e-5)


def test_padding_counts_neither_in_the_sum_nor_in_the_mean():
    student, teacher = rand(2, 3, 4).requires_grad_(), torch.zeros(2, 3, 4)
    teacher[0, 2:], teacher[1, 1:] = torch.nan, 1e9
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    valid = [*student[0, :2].flatten().tolist(), *student[1, :1].flatten().tolist()]
    found = compare(MeanSquaredError(mask="attention_mask"), student, teacher, attention_mask=mask)
    assert found.item() == pytest.approx(sum(value**2 for value in valid) / 12, rel=1e-5)
    found.backward()
    assert not student.grad[~mask.bool()].any()
    torch.testing.assert_close(student.grad[mask.bool()], student.detach()[mask.bool()] / 6)


def test_tensors_are_found_in_outputs():
    student, teacher = {"depth": rand(2, 3), "aux": None}, (None, rand(2, 3) + 1.0)
    loss = MeanSquaredError(output="depth", teacher_output="1")
    assert float(compare(loss, student, teacher)) == pytest.approx(1.0, rel=1e-5)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\[8, 1\], the teacher's \[8\].*compared one by one"):
        compare(MeanSquaredError(), rand(8, 1), rand(8))


def test_a_mask_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\], but the output \[2, 3, 4\]"):
        compare(MeanSquaredError(mask="m"), rand(2, 3, 4), rand(2, 3, 4), m=torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = torch.full((3,), 300.0, dtype=dtype), torch.zeros(3, dtype=dtype)  # the square is no float16
    found = compare(MeanSquaredError(), student.requires_grad_(), teacher)
    found.backward()
    assert (found.dtype, found.item()) == (torch.float32, 90000.0)
    assert student.grad.tolist() == [200.0] * 3


def test_equal_outputs_cost_nothing_and_have_no_gradient():
    student = rand(3, 4).requires_grad_()
    compare(MeanSquaredError(), student, student.detach()).backward()
    assert not student.grad.any()


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction"):
        MeanSquaredError(reduction="batchmean")
