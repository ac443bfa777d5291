"""What holds for every loss that compares features."""

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import (
    CRD,
    PKT,
    RKD,
    VID,
    AttentionMap,
    ChannelWise,
    Context,
    Hint,
    MiniLMRelations,
    Observation,
    SimilarityPreserving,
)

PLACES = {"student": "a"}
LOSSES = {
    "attention_map": AttentionMap(**PLACES),
    "channel_wise": ChannelWise(**PLACES),
    "channel_wise_projected": ChannelWise(**PLACES, projection="always"),
    "crd": CRD(**PLACES),
    "hint": Hint(**PLACES),
    "hint_projected": Hint(**PLACES, projection="always"),
    "minilm_relations": MiniLMRelations(**PLACES, relation_heads=2),
    "pkt": PKT(**PLACES),
    "rkd": RKD(**PLACES),
    "similarity_preserving": SimilarityPreserving(**PLACES),
    "vid": VID(**PLACES),
}
SHAPES = {"maps": (4, 6, 3, 3), "tokens": (4, 5, 6)}


STUDENTS = {
    "random": lambda shape: rand(*shape),
    "zeros": torch.zeros,
    "ones": torch.ones,
    "one sample of zeros": lambda shape: rand(*shape) * (torch.arange(shape[0]) > 0).view(-1, *[1] * (len(shape) - 1)),
    "equal samples": lambda shape: rand(1, *shape[1:]).expand(shape),
}


def observe(features):
    return Observation((), {}, None, (features,))


def compute(loss, student, teacher):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learned = loss.make_learned(observe(student), observe(teacher))
    return loss(observe(student), observe(teacher), Context(progress=0.0, batch=None, learned=learned)), learned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("make", STUDENTS.values(), ids=STUDENTS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradients_are_finite_and_of_single_precision(loss, make, shape, dtype):
    for theirs in (make(shape), torch.zeros(shape), rand(*shape, seed=1)):
        student = make(shape).to(dtype).clone().requires_grad_()
        found, learned = compute(loss, student, theirs.to(dtype))
        found.backward()
        assert found.dtype is torch.float32
        assert found.isfinite()
        gradients = [student.grad, *(each.grad for each in (learned.parameters() if learned is not None else ()))]
        assert all(each.isfinite().all() and each.abs().max() < 1e4 for each in gradients)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "loss", [loss for key, loss in LOSSES.items() if key not in ("crd", "vid") and "ed" not in key]
)
def test_equal_features_cost_nothing(loss, shape):
    student = rand(*shape).requires_grad_()
    found, _ = compute(loss, student, student.detach())
    found.backward()
    assert found.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_is_computed_as_the_same_numbers_in_float32(loss, dtype):
    student, teacher = rand(4, 6, 3, 3).to(dtype), rand(4, 6, 3, 3, seed=1).to(dtype)
    expected, _ = compute(loss, student.float(), teacher.float())
    torch.testing.assert_close(compute(loss, student, teacher)[0], expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_double_precision_is_kept_and_the_gradient_is_that_of_the_value(loss):
    student, teacher = rand(4, 6, 2, 2), rand(4, 6, 2, 2, seed=1)
    learned = compute(loss, student, teacher)[1]
    context = Context(progress=0.0, batch=None, learned=None if learned is None else learned.double())
    leaf = student.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda mine: loss(observe(mine), observe(teacher.double()), context), leaf)


@pytest.mark.parametrize("loss", [loss for key, loss in LOSSES.items() if "projected" not in key])
def test_autocast_leaves_the_arithmetic_in_float32(loss):
    student, teacher = rand(4, 6, 3, 3), rand(4, 6, 3, 3, seed=1)
    expected, _ = compute(loss, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = compute(loss, student, teacher)
    torch.testing.assert_close(found, expected)
