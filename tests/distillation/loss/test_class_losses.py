"""What holds for every loss that compares class probabilities."""

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import DIST, DKD, Context, GeneralizedJSD, Observation, ReverseKL, SoftTarget
from lightning_optim.schedule import Linear

LOSSES = {
    "dist": DIST,
    "dkd": DKD,
    "generalized_jsd": GeneralizedJSD,
    "reverse_kl": ReverseKL,
    "soft_target": SoftTarget,
    "soft_target_standardized": lambda **settings: SoftTarget(standardize=True, **settings),
}
OF_TOKENS = [key for key in LOSSES if key != "dkd"]  # which needs a label a sample
LABELS = torch.tensor([0, 2, 1, 4])


def compute(loss, student, teacher, progress=0.0, **kwargs):
    context = Context(progress=progress, batch=(None, LABELS[: len(student)]))
    return loss(Observation((), kwargs, student), Observation((), {}, teacher), context)


@pytest.mark.parametrize("key", LOSSES)
def test_the_gradient_keeps_its_size_when_the_temperature_changes(key):
    """It would fall as the square of the temperature, if the loss were not multiplied by it."""
    sizes = []
    for temperature in (20.0, 40.0):
        student = rand(4, 6).requires_grad_()
        compute(LOSSES[key](temperature=temperature), student, rand(4, 6, seed=1)).backward()
        sizes.append(float(student.grad.norm()))
    ratio = sizes[1] / sizes[0]
    # Correlations do not know the size of what they compare: there the square makes the gradient grow.
    assert ratio == pytest.approx(4.0 if key == "dist" else 1.0, rel=0.1)


@pytest.mark.parametrize("key", [key for key in LOSSES if key not in ("dist", "soft_target_standardized")])
def test_classes_are_summed_and_not_averaged(key):
    """Classes that neither network thinks of change nothing, however many there are."""
    student, teacher = rand(4, 6), rand(4, 6, seed=1)
    wide = [torch.cat([each, torch.full((4, 1000), -1e4)], 1) for each in (student, teacher)]
    settings = {"beta": 0.0} if key == "dkd" else {}  # which would compare the other classes among themselves
    loss = LOSSES[key](temperature=2.0, **settings)
    torch.testing.assert_close(compute(loss, *wide), compute(loss, student, teacher))


@pytest.mark.parametrize("key", OF_TOKENS)
def test_classes_of_tokens_are_the_last_axis_and_those_of_maps_the_second(key):
    """Never the tokens: each position is compared as a row of its own would be."""
    student, teacher = rand(2, 3, 5), rand(2, 3, 5, seed=1)
    expected = compute(LOSSES[key](), student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(compute(LOSSES[key](class_dim=-1), student, teacher), expected)
    maps = [each.transpose(1, 2)[..., None] for each in (student, teacher)]
    torch.testing.assert_close(compute(LOSSES[key](class_dim=1), *maps), expected)
    with pytest.raises(ValueError, match="needs to know the axis of the classes"):
        compute(LOSSES[key](), student, teacher)


@pytest.mark.parametrize("key", OF_TOKENS)
def test_padding_changes_neither_loss_nor_gradient(key):
    """A position of padding is left out: logits of 0, which say that all classes are alike, would be an answer."""
    student, teacher, mask = rand(2, 3, 5), rand(2, 3, 5, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = []
    for filler in (0.0, 1e4):
        mine, theirs = (torch.where(mask[..., None].bool(), each, filler) for each in (student, teacher))
        mine.requires_grad_()
        loss = compute(LOSSES[key](mask="attention_mask"), mine, theirs * 1.0, attention_mask=mask)
        loss.backward()
        found.append((loss.detach(), mine.grad))
        assert not mine.grad[~mask.bool()].any()
    torch.testing.assert_close(*found)
    rows = student[mask.bool()], teacher[mask.bool()]
    torch.testing.assert_close(found[0][0], compute(LOSSES[key](), *rows))


@pytest.mark.parametrize("key", LOSSES)
def test_a_smaller_vocabulary_is_refused_and_not_filled_up(key):
    """Filled with logits of 0, the student would seem to find the tokens that it lacks as likely as others."""
    with pytest.raises(ValueError, match="6 and 5 classes"):
        compute(LOSSES[key](), rand(4, 5), rand(4, 6))


@pytest.mark.parametrize("key", LOSSES)
def test_gradients_are_those_of_finite_differences(key):
    student, teacher = rand(4, 6).double().requires_grad_(), rand(4, 6, seed=1).double()
    assert torch.autograd.gradcheck(lambda logits: compute(LOSSES[key](temperature=2.0), logits, teacher), student)


@pytest.mark.parametrize("key", LOSSES)
def test_the_temperature_follows_its_schedule(key):
    student, teacher = rand(4, 6), rand(4, 6, seed=1)
    loss = LOSSES[key](temperature=Linear(start=6.0, end=2.0))
    assert loss.has_schedule
    for progress, temperature in ((0.0, 6.0), (0.5, 4.0), (1.0, 2.0)):
        expected = compute(LOSSES[key](temperature=temperature), student, teacher)
        assert torch.equal(compute(loss, student, teacher, progress), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", LOSSES)
def test_half_precision_is_computed_as_the_same_numbers_in_float32(key, dtype):
    student, teacher = rand(4, 6).to(dtype), rand(4, 6, seed=1).to(dtype)
    expected = compute(LOSSES[key](), student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = compute(LOSSES[key](), student, teacher)
    torch.testing.assert_close(found, expected)
