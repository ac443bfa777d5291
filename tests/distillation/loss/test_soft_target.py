from dataclasses import dataclass

import pytest
import torch

from lightning_optim.distillation import Context, SoftTarget
from lightning_optim.distillation.functional import soft_target_loss
from lightning_optim.surgery.tap import ModuleCall

CONTEXT = Context(progress=0.0, batch=None)
STUDENT, TEACHER = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)


@dataclass
class Answer:
    logits: torch.Tensor


def test_settings_reach_the_formula():
    loss = SoftTarget(temperature=2.0, reduction="sum", class_dim=1)
    expected = soft_target_loss(STUDENT, TEACHER, 2.0, reduction="sum", class_dim=1)
    assert torch.equal(loss(ModuleCall((), {}, STUDENT), ModuleCall((), {}, TEACHER), CONTEXT), expected)


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
    found = SoftTarget(output=output)(ModuleCall((), {}, wrap(STUDENT)), ModuleCall((), {}, wrap(TEACHER)), CONTEXT)
    assert torch.equal(found, SoftTarget()(ModuleCall((), {}, STUDENT), ModuleCall((), {}, TEACHER), CONTEXT))


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
        SoftTarget(output=output)(ModuleCall((), {}, answer), ModuleCall((), {}, answer), CONTEXT)


def test_mask_is_taken_from_the_networks_call():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    call = ModuleCall((), {"attention_mask": mask}, student)
    found = SoftTarget(mask="attention_mask")(call, ModuleCall((), {}, teacher), CONTEXT)
    assert torch.equal(found, soft_target_loss(student, teacher, 4.0, mask=mask.bool()))


def test_absent_mask_is_refused():
    call = ModuleCall((), {"ids": STUDENT}, STUDENT)
    with pytest.raises(ValueError, match=r"without a tensor 'attention_mask'; its keyword arguments were \['ids'\]"):
        SoftTarget(mask="attention_mask")(call, call, CONTEXT)


def test_scores_without_a_class_axis_are_refused():
    call = ModuleCall((), {}, torch.zeros(8))
    with pytest.raises(ValueError, match="logits with a class axis"):
        SoftTarget()(call, call, CONTEXT)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": -1.0}, {"reduction": "batchmean"}])
def test_bad_setting_is_refused_when_it_is_made(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SoftTarget(**settings)
