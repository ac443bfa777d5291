"""Several teachers answer as one: each number as Python floats give it."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_optim.distillation import EMA, ModuleTeacher, Place, Several, Uncompressed
from lightning_optim.errors import TeacherError
from lightning_optim.surgery.tap import ModuleCall


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        self.layer.weight.data = torch.eye(2) * factor

    def forward(self, x):
        return self.layer(x)


@dataclass
class Answer:
    logits: torch.Tensor
    ids: torch.Tensor


class Answers(Scaled):
    def forward(self, x):
        return Answer(self.layer(x), torch.arange(2))


def of(*modules, weights=None, keys=("a", "b", "c")):
    members = {key: ModuleTeacher(module=module) for key, module in zip(keys, modules, strict=False)}
    teacher = Several(teachers=members, weights=weights)
    frozen = teacher.freeze(teacher.load(lambda: pytest.fail("not needed")))
    frozen.place(torch.device("cpu"), torch.float32)
    return frozen


CALL = ModuleCall((torch.tensor([[1.0, -2.0]]),), {}, None)


@pytest.mark.parametrize(
    ("weights", "factor"),
    [
        (None, (1.0 + 2.0 + 6.0) / 3),
        ({"a": 1, "b": 1, "c": 2}, (1.0 + 2.0 + 2 * 6.0) / 4),
        ({"a": 1, "b": 0, "c": 0}, 1),
    ],
)
def test_output_is_the_weighted_mean(weights, factor):
    answer = of(Scaled(1.0), Scaled(2.0), Scaled(6.0), weights=weights)(CALL).call.output
    assert answer.flatten().tolist() == pytest.approx([factor, -2.0 * factor], rel=1e-6)
    assert not answer.requires_grad


def test_output_objects_are_averaged_and_integers_are_the_firsts():
    answer = of(Answers(1.0), Answers(3.0))(CALL).call.output
    assert answer.logits.tolist() == [[2.0, -4.0]]
    assert answer.ids.tolist() == [0, 1]


def test_places_of_each_member_are_recorded_under_its_key():
    frozen = of(Scaled(1.0), Scaled(3.0))
    frozen.look_at([Place("a.layer"), Place("b.layer", "input"), Place("b")])
    found = frozen(CALL).features
    assert found[Place("a.layer")].tolist() == [[1.0, -2.0]]
    assert found[Place("b.layer", "input")].tolist() == [[1.0, -2.0]]
    assert found[Place("b")].tolist() == [[3.0, -6.0]]
    frozen.release()
    assert not any(part._forward_hooks for part in frozen.module.modules())


def test_members_keep_number_formats_of_their_own():
    members = {"a": ModuleTeacher(module=Scaled(1.0), precision="bfloat16"), "b": ModuleTeacher(module=Scaled(2.0))}
    teacher = Several(teachers=members)
    frozen = teacher.freeze(teacher.load(lambda: None))
    frozen.place(torch.device("cpu"), torch.float32)
    assert frozen.module.a.layer.weight.dtype is torch.bfloat16
    assert frozen(CALL).call.output.dtype is torch.float32


def test_copies_of_the_student_among_members_are_found():
    student = Scaled(1.0)
    teacher = Several(teachers={"dense": Uncompressed(), "file": ModuleTeacher(module=Scaled(2.0)), "mean": EMA()})
    frozen = teacher.freeze(teacher.load(lambda: student))
    assert [copied.module for copied in frozen.copies] == [frozen.module.dense, frozen.module.mean]
    assert [copied.follows for copied in frozen.copies] == [False, True]


def test_outputs_that_differ_are_refused_by_name():
    with pytest.raises(TeacherError, match=r"'a' and 'b' cannot be averaged: 'the output' is \[1, 2\] of the one and"):
        of(Scaled(1.0), nn.Linear(2, 3))(CALL)
    with pytest.raises(TeacherError, match=r"'the output' is .* and nothing of the other"):
        of(Scaled(1.0), Answers(1.0))(CALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": {}}, "teachers must hold at least one teacher"),
        ({"teachers": {"a.b": EMA()}}, "has no dot: got 'a.b'"),
        ({"teachers": {"a": EMA()}, "weights": {"b": 1.0}}, r"weights are of \['b'\], teachers are \['a'\]"),
        ({"teachers": {"a": EMA()}, "weights": {"a": 0.0}}, "at least 0 whose sum is positive"),
        ({"teachers": {"a": EMA(), "b": EMA()}, "weights": {"a": 2.0, "b": -1.0}}, "at least 0 whose sum is positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Several(**settings)
