import math
from dataclasses import dataclass

import pytest
import torch
from by_hand import CONTEXT

from lightning_optim.distillation import Context, Observation, SoftTarget
from lightning_optim.distillation.functional import soft_target_loss
from lightning_optim.distillation.objective import DistillationObjective
from lightning_optim.schedule import Linear

STUDENT, TEACHER = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)


@dataclass
class Answer:
    logits: torch.Tensor


def test_settings_reach_the_formula():
    loss = SoftTarget(temperature=2.0, reduction="sum", class_dim=1)
    expected = soft_target_loss(STUDENT, TEACHER, 2.0, reduction="sum", class_dim=1)
    assert torch.equal(loss(Observation((), {}, STUDENT), Observation((), {}, TEACHER), CONTEXT), expected)


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda logits: {"logits": logits, "hidden": None}, "logits"),
        (Answer, "logits"),
        (lambda logits: (None, logits), 1),
        (lambda logits: [None, logits], -1),
    ],
)
def test_logits_are_found_in_the_output(wrap, output):
    loss, plain = SoftTarget(output=output, class_dim=1), SoftTarget(class_dim=1)
    found = loss(Observation((), {}, wrap(STUDENT)), Observation((), {}, wrap(TEACHER)), CONTEXT)
    assert torch.equal(found, plain(Observation((), {}, STUDENT), Observation((), {}, TEACHER), CONTEXT))


@pytest.mark.parametrize(
    ("answer", "output", "message"),
    [
        ({"scores": STUDENT}, "logits", r"a dict with keys \['scores'\]"),
        ({"logits": STUDENT}, None, r"needs a tensor, but the network returns a dict with keys \['logits'\]"),
        ((STUDENT,), 1, "a tuple of 1 entries"),
        (STUDENT, "logits", "a Tensor"),
    ],
)
def test_output_without_logits_is_refused(answer, output, message):
    with pytest.raises(ValueError, match=message):
        SoftTarget(output=output)(Observation((), {}, answer), Observation((), {}, answer), CONTEXT)


def test_mask_is_taken_from_the_networks_call():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    call = Observation((), {"attention_mask": mask}, student)
    found = SoftTarget(mask="attention_mask")(call, Observation((), {}, teacher), CONTEXT)
    assert torch.equal(found, soft_target_loss(student, teacher, 4.0, mask=mask.bool()))


def test_absent_mask_is_refused():
    call = Observation((), {"ids": STUDENT}, STUDENT)
    with pytest.raises(ValueError, match=r"without a tensor 'attention_mask'; its keyword arguments were \['ids'\]"):
        SoftTarget(mask="attention_mask")(call, call, CONTEXT)


def test_scores_without_a_class_axis_are_refused():
    call = Observation((), {}, torch.zeros(8))
    with pytest.raises(ValueError, match="logits with a class axis"):
        SoftTarget()(call, call, CONTEXT)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": -1.0}, {"reduction": "batchmean"}])
def test_bad_setting_is_refused_when_it_is_made(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SoftTarget(**settings)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 3), (2, 4, 5, 3, 6)])
def test_beyond_two_axes_the_axis_of_the_classes_is_not_guessed(shape):
    call = Observation((), {}, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"class_dim=-1 if they are \[B, T, C\], or class_dim=1") as caught:
        SoftTarget()(call, call, CONTEXT)
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize(("mask_shape", "class_dim"), [((2, 3, 4), 1), ((2, 5, 3), 3), ((2, 5, 4), 2)])
def test_a_mask_tells_the_axis_of_the_classes(mask_shape, class_dim):
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    calls = Observation((), {"mask": torch.ones(mask_shape)}, student), Observation((), {}, teacher)
    expected = SoftTarget(class_dim=class_dim)(*calls, CONTEXT)
    torch.testing.assert_close(SoftTarget(mask="mask")(*calls, CONTEXT), expected)


def test_a_mask_that_fits_two_axes_tells_none():
    call = Observation((), {"mask": torch.ones(2, 5)}, torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match="needs to know the axis of the classes"):
        SoftTarget(mask="mask")(call, call, CONTEXT)


@pytest.mark.parametrize(
    ("teacher", "teacher_output"),
    [(TEACHER, None), ({"logits": TEACHER}, None), ({"scores": TEACHER}, "scores"), ((None, [TEACHER]), "1.0")],
)
def test_the_teachers_logits_may_be_elsewhere(teacher, teacher_output):
    loss = SoftTarget(output="logits", teacher_output=teacher_output, class_dim=1)
    found = loss(Observation((), {}, {"logits": STUDENT, "aux": None}), Observation((), {}, teacher), CONTEXT)
    assert torch.equal(found, soft_target_loss(STUDENT, TEACHER, 4.0, class_dim=1))


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "message"),
    [
        (
            {"logits": STUDENT},
            TEACHER,
            {},
            "^student: .* a dict with keys .*; set output to one of its tensors: 'logits' of",
        ),
        (
            STUDENT,
            {"logits": TEACHER},
            {},
            "^teacher: .* a dict with keys .*; set teacher_output to one of its tensors",
        ),
        (
            STUDENT,
            {"logits": TEACHER},
            {"teacher_output": "x"},
            "^teacher: the loss needs a tensor at teacher_output='x'",
        ),
        (STUDENT, TEACHER, {"teacher_output": "x"}, "^teacher: .* returns a Tensor; set teacher_output to null"),
        ({}, TEACHER, {}, "^student: .*; it holds no tensor"),
    ],
)
def test_a_message_names_the_network_that_it_is_about(student, teacher, settings, message):
    with pytest.raises(ValueError, match=message):
        SoftTarget(class_dim=1, **settings)(Observation((), {}, student), Observation((), {}, teacher), CONTEXT)


def test_standardized_logits_are_those_of_python():
    student, teacher = STUDENT[:, 0, 0], TEACHER[:, 0, 0]

    def softened(row):
        mean = sum(row) / len(row)
        deviation = (sum((value - mean) ** 2 for value in row) / len(row)) ** 0.5
        powers = [math.exp((value - mean) / deviation / 2.0) for value in row]
        return [power / sum(powers) for power in powers]

    expected = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        expected += sum(q * math.log(q / p) for q, p in zip(softened(theirs), softened(mine), strict=True))
    loss = SoftTarget(standardize=True, temperature=2.0)
    found = loss(Observation((), {}, student), Observation((), {}, teacher), CONTEXT)
    assert float(found) == pytest.approx(4.0 * expected / 2, rel=1e-4)


def test_standardized_logits_forget_their_size_and_keep_their_axis():
    loss = SoftTarget(standardize=True, class_dim=1)
    found = loss(Observation((), {}, STUDENT), Observation((), {}, 7.0 * STUDENT + 3.0), CONTEXT)
    assert float(found) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.0])
def test_equal_logits_have_a_finite_gradient_where_they_are_standardized(value, dtype):
    logits = torch.full((2, 3), value, dtype=dtype).requires_grad_()
    loss = SoftTarget(standardize=True)(Observation((), {}, logits), Observation((), {}, STUDENT[:, 0, 0]), CONTEXT)
    loss.backward()
    assert loss.dtype is torch.float32
    assert loss.isfinite()
    assert not logits.grad.any()


def test_a_class_that_both_exclude_does_not_change_the_standardized():
    student, teacher = STUDENT[:, 0, 0], TEACHER[:, 0, 0]
    wide = [torch.cat([each, torch.full((2, 1), -torch.inf)], -1).requires_grad_() for each in (student, teacher)]
    loss = SoftTarget(standardize=True)
    found = loss(*(Observation((), {}, each) for each in wide), CONTEXT)
    found.backward()
    torch.testing.assert_close(found, loss(Observation((), {}, student), Observation((), {}, teacher), CONTEXT))
    assert wide[0].grad.isfinite().all()


def test_the_temperature_follows_its_schedule():
    loss = SoftTarget(temperature=Linear(start=8.0, end=2.0), class_dim=1)
    calls = Observation((), {}, STUDENT), Observation((), {}, TEACHER)
    for progress, temperature in [(0.0, 8.0), (0.5, 5.0), (1.0, 2.0)]:
        found = loss(*calls, Context(progress=progress, batch=None))
        assert torch.equal(found, soft_target_loss(STUDENT, TEACHER, temperature, class_dim=1))
    assert DistillationObjective(loss, 1.0, 1.0).has_schedule
    assert not DistillationObjective(SoftTarget(), 1.0, 1.0).has_schedule


@pytest.mark.parametrize("ends", [(0.0, 1.0), (4.0, 0.0), (4.0, -1.0)])
def test_a_schedule_that_ends_at_no_temperature_is_refused(ends):
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        SoftTarget(temperature=Linear(start=ends[0], end=ends[1]))
